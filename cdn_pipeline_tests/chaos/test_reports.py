"""A restart of Postgres at the moment when a run tells Dagster what it has done."""

from collections.abc import Callable
from threading import Timer

import dagster as dg
import pytest

from benchmarks.chaos.place import Place
from benchmarks.chaos.world import RANGE, opened_world
from cdn_pipeline.definitions import defs

AWAY_SECONDS = 0.5


@pytest.mark.parametrize(
    "reader", ["cdn_pipeline.observe.samples.shard_state", "cdn_pipeline.observe.feasibility.feasibility"]
)
def test_postgres_may_restart_while_a_run_reports(place: Place, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    module, _, function = reader.rpartition(".")
    monkeypatch.setattr(reader, restarting(place, getattr(__import__(module, fromlist=[function]), function)))
    with opened_world(place, f"reported_{function}", profiles=1, posts=2) as world:
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.ephemeral() as instance:
            job = defs.resolve_job_def("publish_images")
            run = job.execute_in_process(instance=instance, tags=RANGE, raise_on_error=False)
        assert run.success
        assert world.visible() > 0


def restarting(place: Place, read: Callable[..., object]) -> Callable[..., object]:
    """What reads the catalog, and finds it gone the first time."""
    restarts: list[Timer] = []

    def read_or_fail(*arguments: object) -> object:
        if not restarts:
            place.stop_postgres()
            restarts.append(Timer(AWAY_SECONDS, place.start_postgres))
            restarts[0].start()
        return read(*arguments)

    return read_or_fail
