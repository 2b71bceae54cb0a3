"""How many users' refreshes wait, and how many no run came to; and when that is told as trouble."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.health import Health, check_up
from cdn_pipeline.observe.overview import look_over
from cdn_pipeline.observe.refreshes import Refreshes, refreshes
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.queue.refreshes import (
    EXPIRES_AFTER,
    Limits,
    RefreshAnswer,
    expire_refreshes,
    finish_refresh,
    open_refresh,
)
from cdn_pipeline_tests.queue.catalogs import reference, see, session

MINUTE = timedelta(minutes=1)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def ask(connection: sa.Connection, owner: str, ago: timedelta) -> None:
    see(connection, reference(image=owner, owner=owner))
    open_refresh(connection, INSTAGRAM, owner, Limits())
    earlier = "UPDATE cdn_refreshes SET requested_at = requested_at - CAST(:ago AS interval) WHERE owner_id = :owner"
    connection.execute(sa.text(earlier), {"ago": ago, "owner": owner})


def test_what_waits_is_counted_and_what_was_answered_is_not(connection: sa.Connection) -> None:
    assert refreshes(connection, INSTAGRAM) == Refreshes()
    ask(connection, "done", MINUTE)
    refresh, _ = open_refresh(connection, INSTAGRAM, "done", Limits())
    finish_refresh(connection, INSTAGRAM, refresh, RefreshAnswer.UNAVAILABLE)
    ask(connection, "new", MINUTE)
    ask(connection, "old", 5 * MINUTE)
    found = refreshes(connection, INSTAGRAM)
    assert (found.waiting, found.expired) == (2, 0)
    assert found.age is not None
    assert 5 * MINUTE <= found.age < 6 * MINUTE


def test_what_no_run_came_to_is_trouble_for_an_hour_whether_anybody_has_closed_it_or_not(
    connection: sa.Connection,
) -> None:
    ask(connection, "owner", EXPIRES_AFTER + MINUTE)
    assert refreshes(connection, INSTAGRAM) == Refreshes(expired=1)
    expire_refreshes(connection)
    assert refreshes(connection, INSTAGRAM) == Refreshes(expired=1)
    with snapshot(connection.engine) as now:
        checked = check_up(look_over(now, INSTAGRAM))
    [finding] = [each for each in checked.findings if "refreshes" in each.words]
    assert (finding.health, "sensor" in finding.first) == (Health.DEGRADED, True)
    connection.execute(sa.text("UPDATE cdn_refreshes SET finished_at = finished_at - interval '61 minutes'"))
    assert refreshes(connection, INSTAGRAM) == Refreshes()
