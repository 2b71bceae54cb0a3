"""Partitions: 64 static shards of owners.

A partition per profile would drown Dagster; a shard is a fixed set of owners, and a run of it touches only due jobs.
See https://docs.dagster.io/guides/build/partitions-and-backfills.
"""

import dagster as dg

from cdn_pipeline.collections import SHARDS

SHARDS_PER_RUN = 16  # so a backfill of everything is four runs

image_shards = dg.StaticPartitionsDefinition(SHARDS)

shard_backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=SHARDS_PER_RUN)
