"""What a person runs who does not wait for the sensor."""

import json
import shlex
from collections.abc import Collection

from cdn_pipeline.collections import SHARDS


def run_command(shards: Collection[str] = SHARDS) -> str:
    """The shell command of one run of `publish_images` over these shards and those between them."""
    first, last = min(shards), max(shards)
    if first == last:
        tags = {"dagster/partition": first}
    else:
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return f"dagster job execute -m cdn_pipeline.definitions -j publish_images --tags {shlex.quote(json.dumps(tags))}"
