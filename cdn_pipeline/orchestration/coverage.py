"""Coverage: what needs no run of its own now, by Dagster's records of runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta

import dagster as dg

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.orchestration.assets.images import mirrored_images
from cdn_pipeline.orchestration.assets.sources import source_images
from cdn_pipeline.orchestration.jobs import nightly_freshness_job, publish_images_job
from cdn_pipeline.orchestration.run_requests import FAILED_LATELY, TOO_MANY_FAILURES, Covered, Lane, Need

READS_SOURCES_WITHIN = timedelta(seconds=60)  # of its start, and only once: later changes and refreshes are not seen

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_MIRROR_JOBS = (publish_images_job.name, nightly_freshness_job.name)
_IMAGE_ASSETS = frozenset({source_images.key, *mirrored_images.keys})

# A bulk run takes whatever is due, but may wait for its place and then work for hours.
_COVERED_IN: Mapping[str, Set[Need]] = {
    Lane.URGENT: {Need.URGENT, Need.REFRESH, Need.DUE, Need.CHANGED},
    Lane.REGULAR: {Need.DUE, Need.CHANGED},
    Lane.BULK: {Need.BULK},
}
_COVERED_BY_HAND = {Need.DUE, Need.CHANGED, Need.BULK}  # a run without a lane takes all that is due, in its turn


def look_at_runs(instance: dg.DagsterInstance, sensor_name: str) -> Covered:
    """What the runs that have not ended cover, and which of those that ask for themselves failed too often lately."""
    now = datetime.now(UTC)  # Dagster's clock, not the catalog's
    needs: defaultdict[str, set[Need]] = defaultdict(set)
    for record in instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED)):
        for shard in _mirrored_shards(record.dagster_run):
            needs[shard] |= _covered_by(record, now)
    held_back: dict[str, datetime] = {}
    for (shard, lane), failed_at in _failures(instance, sensor_name, now).items():
        if len(failed_at) >= TOO_MANY_FAILURES:
            needs[shard] |= _covered_in(lane)
            held_back[shard] = sorted(failed_at)[-TOO_MANY_FAILURES] + FAILED_LATELY
    return Covered(needs, held_back)


def mirrors_images(run: dg.DagsterRun) -> bool:
    """Whether the run takes images all the way, as our jobs do, and whoever materializes all their assets in the UI."""
    if run.asset_selection is None:
        return run.job_name in _MIRROR_JOBS
    return run.asset_selection >= _IMAGE_ASSETS


def _named_shards(tags: Mapping[str, str]) -> Sequence[str]:
    """The shards that a run's tags name; none where they name partitions of something else."""
    first = tags.get("dagster/asset_partition_range_start", tags.get("dagster/partition"))
    last = tags.get("dagster/asset_partition_range_end", first)
    return [shard for shard in SHARDS if first <= shard <= last] if first in SHARDS and last in SHARDS else []


def _mirrored_shards(run: dg.DagsterRun) -> Sequence[str]:
    return _named_shards(run.tags) if mirrors_images(run) else []


def _covered_by(record: dg.RunRecord, now: datetime) -> Set[Need]:
    covered = _covered_in(_lane(record.dagster_run))
    has_read = record.start_time is not None and record.start_time < (now - READS_SOURCES_WITHIN).timestamp()
    return covered - {Need.CHANGED, Need.REFRESH} if has_read else covered


def _covered_in(lane: str) -> Set[Need]:
    return _COVERED_IN.get(lane, _COVERED_BY_HAND)


def _lane(run: dg.DagsterRun) -> str:
    return Lane.BULK if "dagster/backfill" in run.tags else run.tags.get("lane", "")


def _failures(
    instance: dg.DagsterInstance, sensor_name: str, now: datetime
) -> Mapping[tuple[str, str], Sequence[datetime]]:
    """When runs failed lately, by shard and lane: a rollout that fails is no reason to let a user wait."""
    failures: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    failed_lately = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - FAILED_LATELY)
    for record in instance.get_run_records(failed_lately):
        if not _asked_by_itself(record.dagster_run, sensor_name):
            continue
        for shard in _mirrored_shards(record.dagster_run):
            failures[shard, _lane(record.dagster_run)].append(record.update_timestamp)
    return failures


def _asked_by_itself(run: dg.DagsterRun, sensor_name: str) -> bool:
    """Whether the sensor has asked for it, or the API for a user's refresh: nobody else asks for urgent runs."""
    return run.tags.get("dagster/sensor_name") == sensor_name or _lane(run) == Lane.URGENT
