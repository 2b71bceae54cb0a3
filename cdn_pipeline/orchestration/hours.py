"""Hours: the partitions of what is counted by the hour, in UTC. Dagster offers an hour once it is over."""

from collections.abc import Mapping
from datetime import datetime

import dagster as dg

HOURS_PER_RUN = 24  # so a backfilled week is seven runs

hours = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00")

hour_backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=HOURS_PER_RUN)


def hour_key(hour: datetime) -> str:
    """The partition key of the hour that begins then (UTC)."""
    return hour.strftime(hours.fmt)


def hour_tags(first: str, last: str) -> Mapping[str, str]:
    """The tags that make a run one of these hours, or of the only one."""
    if first == last:
        return {"dagster/partition": first}
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def run_hours(context: dg.AssetExecutionContext) -> Mapping[str, datetime]:
    """The hours of a run: first moments by partition key, in order.

    Raises:
        Failure: the run names none.
    """
    if not (context.has_partition_key or context.has_partition_key_range):
        raise dg.Failure(
            'This run names no hour. Give it the tag {"dagster/partition": "2026-01-31-14:00"}, or the two tags '
            '{"dagster/asset_partition_range_start": "…", "dagster/asset_partition_range_end": "…"}.'
        )
    return {key: hours.time_window_for_partition_key(key).start for key in context.partition_keys}
