from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
import time_machine

from benchmarks.simulation.timeline import SimulatedClock, Timeline
from cdn_pipeline.demo import fast_clock

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
def database(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def traveller() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(START) as traveller:
        yield traveller


def now_in(database: sa.Engine) -> datetime:
    with database.connect() as connection:
        now: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return now


def test_the_clocks_of_the_process_and_of_the_database_are_moved_together(
    database: sa.Engine, traveller: time_machine.Traveller
) -> None:
    clock = SimulatedClock(traveller.move_to, database)
    for moment in (START + 500 * HOUR, START):
        clock.move_to(moment)
        assert timedelta() <= datetime.now(UTC) - moment < 5 * SECOND
        assert timedelta() <= now_in(database) - moment < 5 * SECOND


def test_things_happen_in_order_at_their_time_and_may_plan_others(traveller: time_machine.Traveller) -> None:
    timeline, seen = Timeline(SimulatedClock(traveller.move_to)), list[tuple[str, float]]()

    def happen(name: str, now: datetime) -> None:
        seen.append((name, (now - START) // HOUR))

    def plan_another(now: datetime) -> None:
        happen("second", now)
        timeline.at(START + 3 * HOUR, lambda now: happen("third", now))

    timeline.at(START + 4 * HOUR, lambda now: happen("fourth", now))
    timeline.at(START + 9 * HOUR, lambda now: happen("too late", now))
    timeline.at(START + 2 * HOUR, plan_another)
    timeline.at(START + 1 * HOUR, lambda now: happen("first", now))
    timeline.run(until=START + 9 * HOUR)
    assert seen == [("first", 1), ("second", 2), ("third", 3), ("fourth", 4)]


def test_what_takes_long_makes_the_next_thing_late_and_the_clock_never_goes_back(
    traveller: time_machine.Traveller,
) -> None:
    timeline, seen = Timeline(SimulatedClock(traveller.move_to)), list[datetime]()
    timeline.at(START + 1 * HOUR, lambda _: traveller.shift(3 * HOUR))
    timeline.at(START + 2 * HOUR, seen.append)
    timeline.run(until=START + 5 * HOUR)
    [moment] = seen
    assert moment >= START + 4 * HOUR
