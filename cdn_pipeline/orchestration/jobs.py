"""Jobs: selections of assets that run together."""

import dagster as dg

from cdn_pipeline.orchestration.assets.delivery import delivery_probes
from cdn_pipeline.orchestration.assets.images import mirrored_images
from cdn_pipeline.orchestration.assets.sources import source_images
from cdn_pipeline.orchestration.assets.stats import processing_stats
from cdn_pipeline.orchestration.assets.upkeep import cleaned_stores
from cdn_pipeline.orchestration.config import FRESHNESS_TAG
from cdn_pipeline.orchestration.standing_checks import standing_checks

_standing_checks = dg.AssetSelection.checks(standing_checks)
_image_assets = dg.AssetSelection.assets(source_images, mirrored_images) - _standing_checks

_FIRST = {"dagster/priority": "10"}  # short, and what tells of trouble must not wait behind it

publish_images_job = dg.define_asset_job(
    "publish_images",
    selection=_image_assets,
    description="Discovers, downloads, transcodes and publishes what is due in one shard, or in a range of shards.",
)

nightly_freshness_job = dg.define_asset_job(
    "nightly_freshness",
    selection=_image_assets,
    tags={FRESHNESS_TAG: "nightly", "lane": "bulk"},
    description=(
        "Reads every source row of a shard or of a range of shards, tries again what waits for a later attempt, asks "
        "sources conditionally whether their pictures changed, and publishes what is due."
    ),
)

hourly_stats_job = dg.define_asset_job(
    "hourly_stats",
    selection=dg.AssetSelection.assets(processing_stats),
    tags=_FIRST,
    description="Counts what the jobs of one hour did, or of each in a range of hours, and checks the stored figures.",
)

probe_delivery_job = dg.define_asset_job(
    "probe_delivery",
    selection=dg.AssetSelection.assets(delivery_probes),
    tags=_FIRST,
    description="Asks for a sample of published URLs as strangers do, and judges what they give and how fast.",
)

clean_up_job = dg.define_asset_job(
    "clean_up",
    selection=dg.AssetSelection.assets(cleaned_stores),
    description="Removes what nobody needs any more from stores and catalog, then verifies a sample of what is left.",
)

standing_checks_job = dg.define_asset_job(
    "standing_checks",
    selection=_standing_checks,
    tags=_FIRST,
    description="Judges how things stand, whatever any run did: images lost, deadlines, what is left waiting.",
)
