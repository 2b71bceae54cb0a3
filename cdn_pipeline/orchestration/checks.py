"""Checks that a run evaluates itself, each named by the property it proves, and when an asset counts as fresh.

Checks of how things stand, whatever any run did, are in `standing_checks`. Numbers and thresholds come from
`cdn_pipeline.observe`.
"""

from collections.abc import Sequence

import dagster as dg

from cdn_pipeline.observe import thresholds
from cdn_pipeline.orchestration.partitions import image_shards

success_rate = "success_rate"
shard_success_rate = "shard_success_rate"
few_images_gone_or_expired = "few_images_gone_or_expired"

published_objects_in_store = "published_objects_in_store"

# Told of an asset as a whole: Dagster looks at the last materialization of any partition. That no single shard is left
# behind is told by `every_shard_was_scanned_within_a_day`.
renewed_every_night = dg.FreshnessPolicy.time_window(
    fail_window=thresholds.UNRENEWED_ERROR, warn_window=thresholds.UNRENEWED_WARNING
)

OBJECTS_INSPECTED = 200  # HEADs per run: 0.00007 $ on R2


def mirror_check_specs(asset: dg.AssetKey) -> Sequence[dg.AssetCheckSpec]:
    """Checks that a run evaluates itself: three judge the run and can fail it, one informs about each shard."""
    return [
        dg.AssetCheckSpec(
            success_rate,
            asset=asset,
            blocking=True,
            description=f"At least {thresholds.SUCCESS_RATE_ERROR:.0%} of the images that the run tried were completed "
            f"(a warning below {thresholds.SUCCESS_RATE_WARNING:.0%}). Each counts once, by its last outcome.",
        ),
        dg.AssetCheckSpec(
            few_images_gone_or_expired,
            asset=asset,
            blocking=True,
            description=f"At most {thresholds.NOT_IN_RATE_ERROR:.0%} of the claimed images ended gone, expired or "
            "released: they are not in the success rate.",
        ),
        dg.AssetCheckSpec(
            published_objects_in_store,
            asset=asset,
            blocking=True,
            description=f"Of {OBJECTS_INSPECTED} visible renditions, drawn at random, every object is in the store: "
            "no URL without its object.",
        ),
        dg.AssetCheckSpec(
            shard_success_rate,
            asset=asset,
            partitions_def=image_shards,
            description="The success rate of one shard. Informs only.",
        ),
    ]
