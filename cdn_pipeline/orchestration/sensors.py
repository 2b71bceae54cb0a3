"""Sensors: what makes runs start by itself. They are stopped until somebody switches them on."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.orchestration.config import DiscoverConfig
from cdn_pipeline.orchestration.coverage import look_at_runs
from cdn_pipeline.orchestration.jobs import publish_images_job
from cdn_pipeline.orchestration.kept_open import KeptOpen
from cdn_pipeline.orchestration.partitions import SHARDS_PER_RUN
from cdn_pipeline.orchestration.resources import fail_killed_runs
from cdn_pipeline.orchestration.run_requests import PlannedRun, plan_runs, why_nothing

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.engine.due_work import DueWork
    from cdn_pipeline.settings import Settings


@dg.sensor(
    job=publish_images_job,
    minimum_interval_seconds=20,
    description="Asks for runs of the shards in which images are due or source rows changed, in the fewest ranges.",
)
def due_images_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Looks at the catalog and the source every 20 s; `run_requests` decides."""
    work = _look(context.instance)
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


@dataclass(frozen=True, slots=True)
class _Databases:
    """What the sensor looks at."""

    source: "sa.Engine"
    catalog: "sa.Engine"


@contextmanager
def _open_databases(settings: "Settings") -> Iterator[_Databases]:
    from cdn_pipeline.catalog.sessions import open_catalog, open_source_database
    from cdn_pipeline.engine.due_work import catalog_answers

    with ExitStack() as stack:
        with catalog_answers():
            catalog = stack.enter_context(open_catalog(settings))
        yield _Databases(stack.enter_context(open_source_database(settings)), catalog)


_databases = KeptOpen(_open_databases)


def _look(instance: dg.DagsterInstance) -> "DueWork":
    """What is due, in the databases that the environment names now; ends runs that were killed.

    Raises:
        ConfigurationError: the environment is incomplete or contradicts itself.
        DatabaseUnreachableError: one of them does not answer.
    """
    from cdn_pipeline.engine.due_work import catalog_answers, look_for_due_work
    from cdn_pipeline.queue.heartbeats import beat

    with _databases.in_use() as databases:
        with catalog_answers(), databases.catalog.begin() as connection:
            beat(connection, due_images_sensor.name)
            fail_killed_runs(instance, connection)
        return look_for_due_work(databases.source, databases.catalog, INSTAGRAM)
