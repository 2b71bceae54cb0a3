"""The switch and the percentage: who is given CDN URLs, for how long not, and who changed it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.delivery_policy import (
    CDN_PERCENTAGE,
    DeliveryPolicy,
    has_cdn_urls,
    read_policy,
    set_percentage,
    switch_back,
    switch_off,
    switch_off_if_on,
    switch_on,
)
from cdn_pipeline_tests.queue.catalogs import session

SOON = timedelta(minutes=5)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def percentage(connection: sa.Connection) -> int:
    """As the API's query has it."""
    return int(connection.execute(sa.text(f"SELECT {CDN_PERCENTAGE}")).scalar_one())


def let_time_pass(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_delivery_policy SET off_until = now() - interval '1 second'"))


def test_without_a_row_the_cdn_is_on_for_everybody(connection: sa.Connection) -> None:
    assert read_policy(connection) == DeliveryPolicy()
    assert percentage(connection) == 100


def test_it_is_off_until_somebody_switches_it_on_and_remembers_the_percentage(connection: sa.Connection) -> None:
    set_percentage(connection, "me", 30)
    off = switch_off(connection, "me", expires_in=None)
    assert (off.is_on, off.off_until, percentage(connection)) == (False, None, 0)
    assert switch_on(connection, "me") == DeliveryPolicy(30)
    assert percentage(connection) == 30


def test_what_was_switched_off_for_a_time_comes_back_by_itself(connection: sa.Connection) -> None:
    off = switch_off(connection, "me", expires_in=SOON)
    assert off.off_since
    assert off.off_until
    assert off.off_until - off.off_since == SOON
    assert percentage(connection) == 0
    let_time_pass(connection)
    assert read_policy(connection).is_on
    assert percentage(connection) == 100


def test_a_drill_leaves_alone_what_an_operator_has_switched_off(connection: sa.Connection) -> None:
    switch_off(connection, "operator", expires_in=None)
    assert switch_off_if_on(connection, "drill", expires_in=SOON) is None
    assert read_policy(connection).off_until is None


def test_a_drill_may_begin_after_a_switch_that_has_expired(connection: sa.Connection) -> None:
    switch_off(connection, "drill", expires_in=SOON)
    let_time_pass(connection)
    assert switch_off_if_on(connection, "drill", expires_in=SOON)


def test_a_drill_undoes_its_own_switch_and_no_other(connection: sa.Connection) -> None:
    mine = switch_off_if_on(connection, "drill", expires_in=SOON)
    assert mine
    switch_off(connection, "operator", expires_in=None)
    assert not switch_back(connection, "drill", mine)
    assert not read_policy(connection).is_on
    switch_on(connection, "operator")
    mine = switch_off_if_on(connection, "drill", expires_in=SOON)
    assert mine
    assert switch_back(connection, "drill", mine)
    assert read_policy(connection).is_on


def test_every_change_is_in_the_audit(connection: sa.Connection) -> None:
    set_percentage(connection, "ada", 5)
    switch_off(connection, "ben", expires_in=SOON)
    switch_on(connection, "cleo")
    found = [(entry.actor, entry.action, entry.details["percentage"]) for entry in latest_actions(connection, 9)]
    assert found == [("cleo", "cdn-on", 5), ("ben", "cdn-off", 5), ("ada", "cdn-percentage", 5)]


@pytest.mark.parametrize("percent", [-1, 101])
def test_no_other_percentages_can_be_written(connection: sa.Connection, percent: int) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="percentage"):
        set_percentage(connection, "me", percent)


@given(st.uuids().map(str), st.integers(0, 99))
def test_who_has_cdn_urls_keeps_them_when_more_have(owner_id: str, percent: int) -> None:
    assert has_cdn_urls(owner_id, 100)
    assert not has_cdn_urls(owner_id, 0)
    assert has_cdn_urls(owner_id, percent + 1) >= has_cdn_urls(owner_id, percent)


def test_a_percentage_of_owners_is_about_that_many_of_them() -> None:
    owners = [f"00000000-0000-4000-8000-{number:012d}" for number in range(10_000)]
    for percent in (1, 10, 50):
        chosen = sum(has_cdn_urls(owner, percent) for owner in owners)
        assert abs(chosen - 100 * percent) < 250
