"""The short form of `make chaos`: a few disasters, each in a world of its own."""

import pytest

from benchmarks.chaos import faults
from benchmarks.chaos.disasters import Disaster, kills, postgres_restarted, store_fault, terminated
from benchmarks.chaos.place import Place
from benchmarks.chaos.trial import survives

DISASTERS = [
    Disaster("kill -9", kills(2, whole_tree=False)),
    Disaster("SIGTERM", terminated),
    Disaster("Postgres stopped and started", postgres_restarted),
    Disaster("store lies", store_fault(faults.lies, outage_seconds=0)),
]


@pytest.mark.parametrize("disaster", DISASTERS, ids=lambda disaster: disaster.name)
def test_after_a_disaster_the_next_run_has_everything(place: Place, disaster: Disaster) -> None:
    seen, wrong = survives(place, disaster, DISASTERS.index(disaster), seed=1)
    assert not wrong, seen
