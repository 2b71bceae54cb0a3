"""Resources: what a run works with, opened once per run. No asset logic here."""

from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import dagster as dg
from pydantic import PrivateAttr

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.collections import Collection
    from cdn_pipeline.engine.mirror import Mirror
    from cdn_pipeline.settings import Settings

REGISTERS_WITHIN = timedelta(minutes=10)  # of its start; 5 s as a rule


class CatalogResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The catalog alone, configured by the environment: for what reads the catalog and mirrors nothing.

    Opened when it is first asked for, and registers no run. The embedded database is started and migrated.
    """

    _open: "Callable[[], sa.Engine]" = PrivateAttr()
    _engine: "sa.Engine | None" = PrivateAttr(default=None)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["CatalogResource"]:
        """Closes what the run has opened after its last step."""
        from cdn_pipeline.catalog.sessions import open_catalog

        with ExitStack() as stack:
            self._open = lambda: stack.enter_context(open_catalog(self.settings))
            self._engine = None
            yield self

    @property
    def engine(self) -> "sa.Engine":
        """An engine on the catalog.

        Raises:
            CatalogOutdatedError: the schema or the base URL written into it is not this code's.
            ConfigurationError: the environment is incomplete or contradicts itself.
        """
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    @property
    def settings(self) -> "Settings":
        """The environment as it is now.

        Raises:
            ConfigurationError: it is incomplete or contradicts itself.
        """
        from cdn_pipeline.settings import load_settings

        return load_settings()


class MirrorResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Catalog, source database, stores and worker pool, configured by the environment (see `.env.example`).

    Opened when it is first asked for: `dagster job execute` initializes a run's resources once more after the run.
    """

    _open: "Callable[[], Mirror]" = PrivateAttr()
    _mirror: "Mirror | None" = PrivateAttr(default=None)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["MirrorResource"]:
        """Closes what the run has opened after its last step."""
        with ExitStack() as stack:
            run_id = context.run.run_id if context.run else f"no run {uuid4()}"
            self._open = lambda: stack.enter_context(_opened(run_id, context.instance, self.collection))
            self._mirror = None
            yield self

    @property
    def collection(self) -> "Collection":
        """What runs mirror; a simulation has its own."""
        from cdn_pipeline.collections import INSTAGRAM

        return INSTAGRAM

    @property
    def mirror(self) -> "Mirror":
        """What the run works with."""
        if self._mirror is None:
            self._mirror = self._open()
        return self._mirror


@contextmanager
def _opened(run_id: str, instance: dg.DagsterInstance | None, collection: "Collection") -> Iterator["Mirror"]:
    """Registers the run in the catalog and closes the books on runs that were killed."""
    from cdn_pipeline.engine.mirror import Mirror
    from cdn_pipeline.settings import load_settings

    with Mirror(load_settings(), run_id, collection) as mirror:
        if instance is not None:
            with mirror.catalog.begin() as connection:
                fail_killed_runs(instance, connection)
        yield mirror


def fail_killed_runs(instance: dg.DagsterInstance, connection: "sa.Connection") -> None:
    """Reports runs as failed whose process is gone, so that they do not stay "started" in Dagster's eyes.

    So are runs that mirror images and have not registered in the catalog ten minutes after their start. Dagster's run
    monitoring never does it for a run that `dagster job execute` started (watched for 40 s), and such a run would count
    against the limit of concurrent runs for ever.
    """
    from cdn_pipeline.queue.leases import end_runs, killed_runs

    run_ids = killed_runs(connection)
    for run_id in [*run_ids, *_runs_that_never_registered(instance, connection)]:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The run's process was killed; what it had not finished is due again.")
    end_runs(connection, run_ids)


def _runs_that_never_registered(instance: dg.DagsterInstance, connection: "sa.Connection") -> Set[str]:
    from cdn_pipeline.orchestration.coverage import mirrors_images
    from cdn_pipeline.queue.leases import registered_runs

    latest_start = (datetime.now(UTC) - REGISTERS_WITHIN).timestamp()
    started = {
        record.dagster_run.run_id
        for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        if record.start_time is not None and record.start_time < latest_start and mirrors_images(record.dagster_run)
    }
    return started - registered_runs(connection, started)
