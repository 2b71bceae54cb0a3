"""Partitions: 64 static shards of owners.

A partition per profile would drown Dagster; a shard is a fixed set of owners, and a run of it touches only due jobs.
See https://docs.dagster.io/guides/build/partitions-and-backfills.
"""

from collections.abc import Sequence

import dagster as dg

from cdn_pipeline.collections import SHARDS

SHARDS_PER_RUN = 16  # so a backfill of everything is four runs

image_shards = dg.StaticPartitionsDefinition(SHARDS)


def run_shards(context: dg.AssetExecutionContext) -> Sequence[str]:
    """The shards of a run, in order.

    Raises:
        Failure: the run names none.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise dg.Failure(
            'This run names no shard. Give it the tag {"dagster/partition": "00"}, or the two tags '
            '{"dagster/asset_partition_range_start": "00", "dagster/asset_partition_range_end": "3f"}.'
        )
    return list(context.partition_keys)


shard_backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=SHARDS_PER_RUN)
