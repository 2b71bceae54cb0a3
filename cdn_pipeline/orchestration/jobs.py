"""Jobs: selections of assets that run together."""

import dagster as dg

from cdn_pipeline.orchestration.assets.images import mirrored_images
from cdn_pipeline.orchestration.assets.sources import source_images

publish_images_job = dg.define_asset_job(
    "publish_images",
    selection=dg.AssetSelection.assets(source_images, mirrored_images),
    description="Discovers, downloads, transcodes and publishes what is due in one shard, or in a range of shards.",
)
