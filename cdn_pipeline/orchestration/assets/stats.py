"""Statistics of every hour, counted from the jobs, and what is checked of them."""

from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.thresholds import judge_processing_time, judge_stats
from cdn_pipeline.orchestration.assets.images import published_images_spec
from cdn_pipeline.orchestration.hours import hour_backfill_policy, hour_key, hours, run_hours
from cdn_pipeline.orchestration.reporting import Metadata, known
from cdn_pipeline.orchestration.resources import CatalogResource

if TYPE_CHECKING:
    from cdn_pipeline.observe.stats import HourStats

COMPARED = timedelta(hours=24)

# Counted at five past. Dagster looks at the last materialization of any hour: a backfill of old hours looks fresh too.
_FRESHNESS = dg.FreshnessPolicy.cron(deadline_cron="15 * * * *", lower_bound_delta=timedelta(minutes=15))


@dg.asset(
    # Drawn in the graph, and no more: an hour is made of jobs and needs no shard.
    deps=[dg.AssetDep(published_images_spec, partition_mapping=dg.SpecificPartitionsPartitionMapping([]))],
    partitions_def=hours,
    backfill_policy=hour_backfill_policy,
    freshness_policy=_FRESHNESS,
    group_name="statistics",
    kinds={"postgres"},
    owners=["team:images"],
    tags={"domain": "images", "stage": "observe"},
    description=(
        "What happened in an hour (UTC), counted from the jobs alone: jobs, failures by kind, times, bytes, depth of "
        "the queue, utilization. Exact, and the same whenever it is counted (table `cdn_processing_stats`).\n\n"
        "An hour that is not over is refused; one that began more than 90 days ago as well, as its jobs may be deleted."
    ),
)
def processing_stats(context: dg.AssetExecutionContext, catalog: CatalogResource) -> dg.MaterializeResult[None]:
    """Counts the hours of the run and stores them.

    Raises:
        Failure: some cannot be counted; the others are, and are shown all the same.
    """
    from cdn_pipeline.observe.stats import HourNotOverError, HourTooOldError, compute_hour, note_storage, write_hour

    counted: dict[str, Metadata] = {}
    refusals = []
    for key, hour in run_hours(context).items():
        try:
            with catalog.engine.begin() as connection:
                stats = compute_hour(connection, hour)
                write_hour(connection, stats)
                note_storage(connection, stats)
        except (HourNotOverError, HourTooOldError) as refusal:
            refusals.append(str(refusal))
        else:
            counted[key] = known(_numbers(stats))
    if refusals:
        for key, numbers in counted.items():
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=key, metadata=numbers))
        raise dg.Failure("; ".join(refusals))
    for key, numbers in counted.items():
        context.add_asset_metadata(numbers, partition_key=key)
    return dg.MaterializeResult()


def _numbers(stats: "HourStats") -> Metadata:
    return {
        "jobs processed": stats.jobs_processed,
        "jobs failed": stats.jobs_failed,
        "success rate": None if stats.success_rate is None else round(stats.success_rate, 4),
        "mean processing time (ms)": stats.avg_processing_time_ms,
        "mean download time (ms)": stats.avg_download_time_ms,
        "mean upload time (ms)": stats.avg_upload_time_ms,
        "bytes in": stats.total_bytes_processed,
        "mean file size (bytes)": stats.avg_file_size_bytes,
        "peak queue depth": stats.peak_queue_depth,
        "worker utilization (%)": stats.worker_utilization_percent,
        "failed by kind": dg.MetadataValue.json(dict(stats.error_categories)) if stats.error_categories else None,
    }


@dg.asset_check(
    asset=processing_stats,
    description=f"In the latest hour that was counted, jobs took {thresholds.PROCESSING_TIME_WARNING_MS} ms or less on "
    "average: download, transcode and upload, without waiting for a turn. A warning.",
)
def mean_processing_time(catalog: CatalogResource) -> dg.AssetCheckResult:
    """Judges the latest hour, also when an older one was just counted again."""
    from cdn_pipeline.observe.stats import latest_hours

    with catalog.engine.connect() as connection:
        latest = latest_hours(connection, 1)
    if not latest:
        return dg.AssetCheckResult(passed=True, description="no hour has been counted yet")
    stats = latest[0]
    judgement = judge_processing_time(stats.avg_processing_time_ms, stats.jobs_completed)
    return dg.AssetCheckResult(
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{stats.start:%Y-%m-%d %H:%M} UTC: {judgement.words}",
        metadata={"mean processing time (ms)": stats.avg_processing_time_ms, "jobs completed": stats.jobs_completed},
    )


@dg.asset_check(
    asset=processing_stats,
    description=f"The stored figures of the last {COMPARED // timedelta(hours=1)} hours are what their jobs say, "
    "counted again, and none of them is missing (since the first that was ever stored). A missing one is a warning: "
    "the schedule counts it within the hour.",
)
def stats_consistent_with_jobs(catalog: CatalogResource) -> dg.AssetCheckResult:
    """Names the hours that differ or are missing, and how to mend them."""
    from cdn_pipeline.observe.stats import compare_hours, missing_hours

    with catalog.engine.connect() as connection:
        compared = compare_hours(connection, COMPARED)
        missing = [hour_key(hour) for hour in missing_hours(connection, COMPARED)]
    differences = {hour_key(each.stored.start): each.differences for each in compared if each.differences}
    judgement = judge_stats(len(compared), list(differences), missing)
    return dg.AssetCheckResult(
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.ERROR if judgement.is_error else dg.AssetCheckSeverity.WARN,
        description=judgement.words,
        metadata=known(
            {
                "hours compared": len(compared),
                "hours that differ": len(differences),
                "hours that are missing": missing or None,
                "stored, counted again": dg.MetadataValue.json(differences) if differences else None,
            }
        ),
    )
