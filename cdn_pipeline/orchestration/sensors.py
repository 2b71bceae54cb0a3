"""Sensors: what makes runs start by itself. They are stopped until somebody switches them on."""

import atexit
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.orchestration.config import DiscoverConfig
from cdn_pipeline.orchestration.coverage import look_at_runs
from cdn_pipeline.orchestration.jobs import publish_images_job
from cdn_pipeline.orchestration.partitions import SHARDS_PER_RUN
from cdn_pipeline.orchestration.resources import fail_killed_runs
from cdn_pipeline.orchestration.run_requests import PlannedRun, plan_runs, why_nothing

if TYPE_CHECKING:
    from cdn_pipeline.engine.due_work import DueWork
    from cdn_pipeline.settings import Settings


@dg.sensor(
    job=publish_images_job,
    minimum_interval_seconds=20,
    description="Asks for runs of the shards in which images are due or source rows changed, in the fewest ranges.",
)
def due_images_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Looks at the catalog and the source every 20 s; `run_requests` decides."""
    work = _databases.look(context.instance)
    covered = look_at_runs(context.instance, due_images_sensor.name)
    planned = plan_runs(work, covered, shards_per_run=SHARDS_PER_RUN)
    if not planned:
        return dg.SkipReason(why_nothing(work, covered))
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
