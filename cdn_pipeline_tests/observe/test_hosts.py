"""Which hosts are told to be left alone."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.hosts import ShutHost, shut_hosts
from cdn_pipeline.observe.thresholds import BREAKER_OPEN_WARNING, judge_breakers
from cdn_pipeline.queue.hosts import BREAKER_FAILURES, note_failure
from cdn_pipeline_tests.queue.catalogs import reference, see, session, take

HOST = "cdn.example"  # of the references in `catalogs`


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def open_breaker(connection: sa.Connection, host: str = HOST) -> None:
    for _ in range(BREAKER_FAILURES):
        note_failure(connection, host, FailureKind.DOWNLOAD_TIMEOUT)


def the_only(connection: sa.Connection) -> ShutHost:
    [found] = shut_hosts(connection, INSTAGRAM)
    return found


def test_a_host_is_told_with_the_images_that_wait_for_it(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number)) for number in range(3)))
    take(connection)
    see(connection, *(reference(image=f"behind {number}") for number in range(2)))
    open_breaker(connection)
    found = the_only(connection)
    assert (found.host, found.failure, found.failures, found.images) == (HOST, FailureKind.DOWNLOAD_TIMEOUT, 5, 2)
    assert found.opened_at < found.retry_at
    assert found.words.startswith("cdn.example is left alone since ")
    assert "after download_timeout" in found.words
    assert found.words.endswith("images behind it: 2")


def test_a_half_open_host_is_told_as_long_as_images_wait_for_it(connection: sa.Connection) -> None:
    open_breaker(connection)
    connection.execute(sa.text("UPDATE cdn_hosts SET retry_at = now()"))
    assert shut_hosts(connection, INSTAGRAM) == ()
    see(connection, reference())
    assert the_only(connection).images == 1


def test_a_host_that_nobody_has_asked_for_hours_is_not_told_of(connection: sa.Connection) -> None:
    see(connection, reference())
    open_breaker(connection)
    connection.execute(sa.text("UPDATE cdn_hosts SET retry_at = '2020-01-01', updated_at = '2020-01-01'"))
    assert shut_hosts(connection, INSTAGRAM) == ()


def test_a_host_that_has_failed_less_than_five_times_is_well(connection: sa.Connection) -> None:
    see(connection, reference())
    note_failure(connection, HOST, FailureKind.DOWNLOAD_TIMEOUT)
    assert shut_hosts(connection, INSTAGRAM) == ()


@pytest.mark.parametrize(
    ("open_for", "passed"),
    [([], True), ([BREAKER_OPEN_WARNING], True), ([timedelta(seconds=1), BREAKER_OPEN_WARNING * 2], False)],
)
def test_a_breaker_may_be_open_for_five_minutes(open_for: list[timedelta], passed: bool) -> None:
    judgement = judge_breakers(open_for)
    assert (judgement.passed, judgement.is_error) == (passed, False)
