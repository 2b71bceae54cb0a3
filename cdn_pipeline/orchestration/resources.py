"""Resources: what a run works with, opened once per run. No asset logic here."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import dagster as dg
from pydantic import PrivateAttr

if TYPE_CHECKING:
    from cdn_pipeline.engine.mirror import Mirror


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
            self._open = lambda: stack.enter_context(_opened(run_id, context.instance))
            self._mirror = None
            yield self

    @property
    def mirror(self) -> "Mirror":
        """What the run works with."""
        if self._mirror is None:
            self._mirror = self._open()
        return self._mirror


@contextmanager
def _opened(run_id: str, instance: dg.DagsterInstance | None) -> Iterator["Mirror"]:
    """Registers the run in the catalog and closes the books on runs that were killed."""
    from cdn_pipeline.engine.mirror import Mirror
    from cdn_pipeline.settings import load_settings

    with Mirror(load_settings(), run_id) as mirror:
        if instance is not None:
            _fail_killed_runs(instance, mirror)
        yield mirror


def _fail_killed_runs(instance: dg.DagsterInstance, mirror: "Mirror") -> None:
    """Reports runs as failed whose process is gone, so that they do not stay "started" in Dagster's eyes.

    Dagster's run monitoring never does it for a run that `dagster job execute` started (watched for 40 s), and such a
    run would count against the limit of concurrent runs for ever.
    """
    from cdn_pipeline.queue.leases import dead_runs, end_runs

    with mirror.catalog.connect() as connection:
        run_ids = dead_runs(connection)
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            instance.report_run_failed(run, "The run's process was killed; what it had not finished is due again.")
    with mirror.catalog.begin() as connection:
        end_runs(connection, run_ids)
