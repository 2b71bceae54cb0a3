"""The application's tables, and the images found in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.orchestration.checks import renewed_every_night
from cdn_pipeline.orchestration.config import FRESHNESS_TAG, DiscoverConfig
from cdn_pipeline.orchestration.partitions import image_shards, run_shards, shard_backfill_policy
from cdn_pipeline.orchestration.reporting import known
from cdn_pipeline.orchestration.resources import MirrorResource
from cdn_pipeline.sources.discovery import Change

if TYPE_CHECKING:
    from cdn_pipeline.engine.mirror import Mirror

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
        "also notices images whose row is gone; what is published of them stays. By night the provider is asked for "
        "profiles whose images want fresh URLs; its answers are taken in like rows. Profiles that turned private are "
        "erased then, if `PRIVATE_PROFILES` says so. Profiles that users want refreshed come first, in any run."
    ),
)
def source_images(
    context: dg.AssetExecutionContext, config: DiscoverConfig, mirror: MirrorResource
) -> dg.MaterializeResult[None]:
    """Discovery: source rows in, changed images and their jobs in the catalog; users' refreshes first."""
    _refresh(context, mirror.mirror, run_shards(context))
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
    if FRESHNESS_TAG in context.run.tags:
        turned_private = _fetch_urls(context, mirror.mirror, run_shards(context))
        _expire(context, mirror.mirror, turned_private)
    return dg.MaterializeResult()


def _refresh(context: dg.AssetExecutionContext, mirror: "Mirror", shards: Sequence[str]) -> None:
    """Profiles that users want fetched again."""
    from cdn_pipeline.engine.refresh import refresh_owners

    mirror.pool.start()  # its processes need about a second, in which the provider is asked
    answers = refresh_owners(
        mirror.settings, mirror.source, mirror.catalog, mirror.collection, shards, run_id=mirror.run.run_id
    )
    for answer, count in answers.items():
        context.log.info(f"refreshes that users asked for: {count} {answer}")


def _fetch_urls(context: dg.AssetExecutionContext, mirror: "Mirror", shards: Sequence[str]) -> Sequence[str]:
    """By night: fresh URLs for what the source rows just read have none for; returns who has turned private."""
    from cdn_pipeline.engine.refetch import refetch_configured

    found = refetch_configured(mirror.settings, mirror.source, mirror.catalog, mirror.collection, shards)
    if found.stopped:
        context.log.warning(f"fresh URLs: {found.why_stopped}; images that still wait: {found.still_waiting.total()}")
    for shard in shards:
        numbers = {
            "profiles asked for": found.asked[shard],
            "profiles answered": found.answered[shard],
            "fresh URLs": found.fresh_urls[shard],
            "still waiting for a URL": found.still_waiting[shard],
            "provider": found.why_stopped,
            "provider budget left": found.budget_left,
        }
        context.add_asset_metadata(known(numbers), partition_key=shard)
    return found.turned_private


def _expire(context: dg.AssetExecutionContext, mirror: "Mirror", owner_ids: Sequence[str]) -> None:
    """Erases them if the settings say so; one that comes to no end stands open, for `cdn-pipeline erase --resume`."""
    from cdn_pipeline.upkeep.erase import Eraser, expire_private_profiles

    for erasure in expire_private_profiles(Eraser.of(mirror.settings, mirror.catalog), mirror.settings, owner_ids):
        words = f"profile {erasure.owner_id} turned private: erasure {erasure.state}"
        context.log.info(f"{words}, {erasure.problem}" if erasure.problem else words)
