"""Schedules: what runs at fixed times. They are stopped until somebody switches them on."""

from collections.abc import Iterator

import dagster as dg

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.orchestration.assets.stats import processing_stats
from cdn_pipeline.orchestration.hours import HOURS_PER_RUN, hour_tags, hours
from cdn_pipeline.orchestration.jobs import (
    clean_up_job,
    hourly_stats_job,
    nightly_freshness_job,
    probe_delivery_job,
    standing_checks_job,
)
from cdn_pipeline.orchestration.partitions import SHARDS_PER_RUN


@dg.schedule(
    job=nightly_freshness_job,
    cron_schedule="0 2 * * *",
    execution_timezone="UTC",
    description="Every night at 02:00 UTC: all source rows, retries and conditional requests of all shards, in 4 runs.",
)
def nightly_freshness_schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
    """The night's runs; their job's `lane=bulk` leaves the other places to work that cannot wait."""
    night = f"{context.scheduled_execution_time:%Y-%m-%d}"
    for start in range(0, len(SHARDS), SHARDS_PER_RUN):
        shards = SHARDS[start : start + SHARDS_PER_RUN]
        yield dg.RunRequest(
            run_key=f"{night}:{shards[0]}-{shards[-1]}",
            tags={
                "dagster/asset_partition_range_start": shards[0],
                "dagster/asset_partition_range_end": shards[-1],
            },
        )


# Of the times that were missed while Dagster's daemon was down, Dagster makes up for the last one only.
@dg.schedule(
    job=hourly_stats_job,
    cron_schedule="5 * * * *",  # the hour before settled four minutes ago
    execution_timezone="UTC",
    description="At five past every hour: counts the hour before, and those of the last 24 that are missing.",
)
def hourly_stats_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """One run from the first hour that was not counted to the last one."""
    tick = context.scheduled_execution_time
    counted = context.instance.get_materialized_partitions(processing_stats.key)
    missing = [hour for hour in hours.get_partition_keys(current_time=tick)[-HOURS_PER_RUN:] if hour not in counted]
    if not missing:
        return dg.SkipReason(f"the last {HOURS_PER_RUN} hours are counted")
    first, last = missing[0], missing[-1]
    return dg.RunRequest(run_key=f"{first}/{last} at {tick:%Y-%m-%d %H:%M}", tags=hour_tags(first, last))


standing_checks_schedule = dg.ScheduleDefinition(
    name="standing_checks_schedule",
    job=standing_checks_job,
    cron_schedule="10 * * * *",
    execution_timezone="UTC",
    description="Ten minutes past every hour: how things stand.",
)

probe_delivery_schedule = dg.ScheduleDefinition(
    name="probe_delivery_schedule",
    job=probe_delivery_job,
    cron_schedule="40 * * * *",  # away from the other hourly jobs, whose work would slow the answers of a local server
    execution_timezone="UTC",
    description="Twenty to every hour: a sample of published URLs is asked for over HTTP.",
)

clean_up_schedule = dg.ScheduleDefinition(
    name="clean_up_schedule",
    job=clean_up_job,
    cron_schedule="30 5 * * *",  # after the night's runs
    execution_timezone="UTC",
    description="Every morning at 05:30 UTC: what nobody needs any more is removed.",
)
