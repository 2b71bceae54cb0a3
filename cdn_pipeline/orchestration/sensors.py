"""Sensors: what makes runs start by itself. They are stopped until somebody switches them on."""

import atexit
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.orchestration.assets.images import mirrored_images
from cdn_pipeline.orchestration.assets.sources import source_images
from cdn_pipeline.orchestration.config import DiscoverConfig
from cdn_pipeline.orchestration.jobs import nightly_freshness_job, publish_images_job
from cdn_pipeline.orchestration.partitions import SHARDS_PER_RUN
from cdn_pipeline.orchestration.resources import fail_killed_runs
from cdn_pipeline.orchestration.run_requests import Covered, Lane, PlannedRun, plan_runs, why_nothing

if TYPE_CHECKING:
    from cdn_pipeline.engine.due_work import DueWork
    from cdn_pipeline.settings import Settings

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_MIRROR_JOBS = (publish_images_job.name, nightly_freshness_job.name)
_IMAGE_ASSETS = frozenset({source_images.key, *mirrored_images.keys})


@dg.sensor(
    job=publish_images_job,
    minimum_interval_seconds=20,
    description="Asks for runs of the shards in which images are due or source rows changed, in the fewest ranges.",
)
def due_images_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Looks at the catalog and the source every 20 s; `run_requests` decides."""
    work = _databases.look(context.instance)
    planned = plan_runs(work, _covered(context.instance), shards_per_run=SHARDS_PER_RUN)
    if not planned:
        return dg.SkipReason(why_nothing(work))
    return dg.SensorResult(run_requests=[_request(run) for run in planned])


def _request(run: PlannedRun) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=run.run_key,
        run_config=dg.RunConfig(ops={"source_images": DiscoverConfig(changed_only=True)}),
        tags={**_range_tags(run.first, run.last), "lane": run.lane.value, "dagster/priority": str(run.priority)},
    )


def _range_tags(first: str, last: str) -> Mapping[str, str]:
    if first == last:
        return {"dagster/partition": first}
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def _covered(instance: dg.DagsterInstance) -> Covered:
    """The shards of all runs that mirror images and have not ended."""
    covered: dict[bool, set[str]] = {False: set(), True: set()}
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if _mirrors_images(run):
            is_bulk = run.tags.get("lane") == Lane.BULK or "dagster/backfill" in run.tags
            covered[is_bulk].update(_shards(run.tags))
    return Covered(shards=covered[False], by_bulk=covered[True])


def _mirrors_images(run: dg.DagsterRun) -> bool:
    """Whether the run takes images all the way, as our jobs do, and whoever materializes all their assets in the UI."""
    if run.asset_selection is None:
        return run.job_name in _MIRROR_JOBS
    return run.asset_selection >= _IMAGE_ASSETS


def _shards(tags: Mapping[str, str]) -> Sequence[str]:
    """The shards that a run's tags name; none where they name partitions of something else."""
    first = tags.get("dagster/asset_partition_range_start", tags.get("dagster/partition"))
    last = tags.get("dagster/asset_partition_range_end", first)
    return [shard for shard in SHARDS if first <= shard <= last] if first in SHARDS and last in SHARDS else []


class _Databases:
    """Catalog and source, opened at the first tick and kept until the code server ends.

    Opening takes half a second where nobody else holds the embedded Postgres open; a tick takes 20 ms.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # "Test sensor" in the UI ticks beside the daemon
        self._settings: Settings | None = None
        self._stack = ExitStack()
        atexit.register(self.close)

    def look(self, instance: dg.DagsterInstance) -> "DueWork":
        """What is due, in the databases that the environment names now; ends runs that were killed.

        Raises:
            ConfigurationError: the environment is incomplete or contradicts itself.
            DatabaseUnreachableError: one of them does not answer; they are opened anew the next time.
        """
        from cdn_pipeline.engine.due_work import DatabaseUnreachableError, catalog_answers, look_for_due_work
        from cdn_pipeline.settings import load_settings

        with self._lock:
            settings = load_settings()
            if settings != self._settings:
                self.close()
                self._open(settings)
            try:
                with catalog_answers(), self._catalog.begin() as connection:
                    fail_killed_runs(instance, connection)
                return look_for_due_work(self._source, self._catalog, INSTAGRAM)
            except DatabaseUnreachableError:
                self.close()
                raise

    def _open(self, settings: "Settings") -> None:
        from cdn_pipeline.catalog.sessions import open_catalog, open_source_database
        from cdn_pipeline.engine.due_work import catalog_answers

        with ExitStack() as stack:
            with catalog_answers():
                self._catalog = stack.enter_context(open_catalog(settings))
            self._source = stack.enter_context(open_source_database(settings))
            self._stack = stack.pop_all()
        self._settings = settings

    def close(self) -> None:
        """Closes both. They are opened again when they are asked for."""
        self._settings = None
        self._stack.close()


_databases = _Databases()
