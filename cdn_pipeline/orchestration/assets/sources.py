"""The application's tables, and the images found in them."""

import dagster as dg

from cdn_pipeline.orchestration.checks import renewed_every_night
from cdn_pipeline.orchestration.config import DiscoverConfig
from cdn_pipeline.orchestration.partitions import image_shards, run_shards, shard_backfill_policy
from cdn_pipeline.orchestration.reporting import known
from cdn_pipeline.orchestration.resources import MirrorResource
from cdn_pipeline.sources.discovery import Change

profiles = dg.AssetSpec(
    "profiles",
    group_name="application",
    kinds={"postgres"},
    owners=["team:application"],
    tags={"domain": "images", "stage": "source"},
    description="Instagram profiles in the application database, with the avatar's signed URLs. Only read.",
)

posts = dg.AssetSpec(
    "posts",
    group_name="application",
    kinds={"postgres"},
    owners=["team:application"],
    tags={"domain": "images", "stage": "source"},
    description="Instagram posts in the application database, with signed URLs of picture and carousel. Only read.",
)


@dg.asset(
    deps=[profiles, posts],
    group_name="images",
    kinds={"postgres"},
    owners=["team:images"],
    tags={"domain": "images", "stage": "discover"},
    freshness_policy=renewed_every_night,
    partitions_def=image_shards,
    backfill_policy=shard_backfill_policy,
    description=(
        "Every image that the source rows of a shard show (avatar, latest 12 posts, carousels), compared with the "
        "catalog: new and changed images get a job, URLs signed again are noted without one.\n\n"
        "Nothing is downloaded here. Rows without a usable URL are counted and shown, never fatal. A scan of all rows "
        "also notices images whose row is gone; what is published of them stays."
    ),
)
def source_images(
    context: dg.AssetExecutionContext, config: DiscoverConfig, mirror: MirrorResource
) -> dg.MaterializeResult[None]:
    """Discovery: source rows in, changed images and their jobs in the catalog."""
    for found in mirror.mirror.discover(run_shards(context), changed_only=config.changed_only):
        context.add_asset_metadata(
            known(
                {
                    "scope": "every row" if found.every_row else "changed rows",
                    "profiles": found.profiles,
                    "discovered": found.images,
                    **{change.value: found.changes[change] for change in Change},
                    "arrived dead": found.arrived_dead,
                    "removed": found.removed if found.every_row else None,
                    **{f"unusable rows: {kind}": count for kind, count in found.problems.items()},
                    "unusable rows": dg.MetadataValue.json(found.samples) if found.samples else None,
                }
            ),
            partition_key=found.shard,
        )
    return dg.MaterializeResult()
