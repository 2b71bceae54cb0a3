"""Turns and breakers in the catalog, and what the queue makes of them. A catalog whose clock moves."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.catalog.tables import image_jobs
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.fetch.hosts import host_of
from cdn_pipeline.queue.demand import demand_by_shard
from cdn_pipeline.queue.due import claim, outlook
from cdn_pipeline.queue.hosts import (
    BREAKER_FAILURES,
    BREAKER_OPEN,
    BREAKER_OPEN_LONGEST,
    PROBE_LEASE,
    Breaker,
    look_at_breakers,
    note_answer,
    note_failure,
    reserve_turns,
    take_probe,
)
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.queue.catalogs import EVERYTHING, RUN, reference, see, session, take

HOST = "cdn.example"  # of the references in `catalogs`
KIND = FailureKind.CONNECTION_FAILED
SPACING = timedelta(seconds=0.2)
SOON = timedelta(seconds=2)

Pass = Callable[[timedelta], None]


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    fast_clock.install(catalog)
    with session(catalog) as connection:
        yield connection


@pytest.fixture
def let_pass(catalog: sa.Engine, connection: sa.Connection) -> Pass:
    """Moves the catalog's clock on."""
    offset = timedelta()

    def move(by: timedelta) -> None:
        nonlocal offset
        offset += by
        fast_clock.set_offset(catalog, offset)

    return move


def fail(connection: sa.Connection, times: int = 1, *, probing: bool = False) -> Breaker:
    for _ in range(times):
        breaker, _ = note_failure(connection, HOST, KIND, probing=probing)
    return breaker


def open_breaker(connection: sa.Connection) -> Breaker:
    return fail(connection, BREAKER_FAILURES)


def about(time: timedelta) -> object:
    return pytest.approx(time.total_seconds(), abs=5)


def seconds(breaker: Breaker) -> float:
    assert breaker.retry_in is not None
    return breaker.retry_in.total_seconds()


# -- turns --


def test_turns_are_promised_one_after_another(connection: sa.Connection) -> None:
    first = reserve_turns(connection, HOST, turns=5, spacing=SPACING)
    second = reserve_turns(connection, HOST, turns=1, spacing=SPACING)
    third = reserve_turns(connection, HOST, turns=1, spacing=SPACING)
    assert first <= timedelta() < second < third <= 6 * SPACING
    assert reserve_turns(connection, "other.example", turns=1, spacing=SPACING) <= timedelta()


def test_turns_are_not_saved_up(connection: sa.Connection, let_pass: Pass) -> None:
    reserve_turns(connection, HOST, turns=1, spacing=SPACING)
    let_pass(timedelta(hours=1))
    assert reserve_turns(connection, HOST, turns=5, spacing=SPACING) <= timedelta()
    assert reserve_turns(connection, HOST, turns=1, spacing=SPACING) > timedelta()


def test_a_clock_that_is_set_back_holds_nobody_up_for_long(connection: sa.Connection, let_pass: Pass) -> None:
    reserve_turns(connection, HOST, turns=5, spacing=SPACING)
    let_pass(timedelta(hours=-1))
    assert reserve_turns(connection, HOST, turns=1, spacing=SPACING) <= timedelta(seconds=60)


# -- breakers --


def test_five_failures_in_a_row_open_a_breaker_for_half_a_minute(connection: sa.Connection) -> None:
    assert not fail(connection, BREAKER_FAILURES - 1).is_open
    breaker = fail(connection)
    assert (breaker.is_open, breaker.failures, breaker.failure) == (True, BREAKER_FAILURES, KIND)
    assert seconds(breaker) == about(BREAKER_OPEN)
    assert [seen.host for seen in look_at_breakers(connection)] == [HOST]


def test_an_answer_in_between_begins_the_count_anew(connection: sa.Connection) -> None:
    fail(connection, BREAKER_FAILURES - 1)
    note_answer(connection, HOST)
    assert look_at_breakers(connection) == []
    assert not fail(connection, BREAKER_FAILURES - 1).is_open


def test_failures_hours_apart_are_not_in_a_row(connection: sa.Connection, let_pass: Pass) -> None:
    for _ in range(2 * BREAKER_FAILURES):
        assert not fail(connection).is_open
        let_pass(timedelta(hours=2))


def test_what_was_on_its_way_when_a_breaker_opened_changes_nothing(connection: sa.Connection) -> None:
    opened = open_breaker(connection)
    note_answer(connection, HOST)
    breaker, was_open = note_failure(connection, HOST, KIND)
    assert was_open
    assert (breaker.opened_at, breaker.retry_at) == (opened.opened_at, opened.retry_at)


def test_one_run_at_a_time_probes_a_half_open_host_and_its_answer_closes_the_breaker(
    connection: sa.Connection, let_pass: Pass
) -> None:
    open_breaker(connection)
    assert take_probe(connection, HOST)[1] is False
    let_pass(BREAKER_OPEN)
    assert take_probe(connection, HOST)[1] is True
    breaker, taken = take_probe(connection, HOST)
    assert not taken
    assert breaker is not None
    assert seconds(breaker) == about(PROBE_LEASE)
    note_answer(connection, HOST, probing=True)
    assert look_at_breakers(connection) == []
    breaker, taken = take_probe(connection, HOST)
    assert not taken
    assert breaker is not None
    assert not breaker.is_open


def test_a_run_that_dies_with_the_probe_leaves_it_to_the_next(connection: sa.Connection, let_pass: Pass) -> None:
    open_breaker(connection)
    let_pass(BREAKER_OPEN)
    assert take_probe(connection, HOST)[1] is True
    let_pass(PROBE_LEASE)
    assert take_probe(connection, HOST)[1] is True


def test_every_probe_that_fails_doubles_the_time_up_to_a_quarter_of_an_hour(
    connection: sa.Connection, let_pass: Pass
) -> None:
    opened = open_breaker(connection)
    times = [seconds(opened)]
    for _ in range(7):
        let_pass(timedelta(seconds=times[-1] + 1))
        assert take_probe(connection, HOST)[1] is True
        breaker = fail(connection, probing=True)
        assert breaker.opened_at == opened.opened_at
        times.append(seconds(breaker))
    assert times == [about(timedelta(seconds=time)) for time in (30, 60, 120, 240, 480, 900, 900, 900)]


def test_a_host_that_says_when_to_come_back_is_left_alone_until_then(connection: sa.Connection, let_pass: Pass) -> None:
    minutes = timedelta(minutes=5)
    breaker, was_open = note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=minutes)
    assert (breaker.is_open, was_open) == (True, False)
    assert seconds(breaker) == about(minutes)
    breaker, was_open = note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=2 * minutes)
    assert was_open
    assert seconds(breaker) == about(2 * minutes)
    let_pass(2 * minutes)
    take_probe(connection, HOST)
    assert seconds(fail(connection, probing=True)) == about(BREAKER_OPEN)


def test_a_host_that_asks_for_a_day_is_asked_again_by_one_image_in_a_quarter_of_an_hour(
    connection: sa.Connection, let_pass: Pass
) -> None:
    breaker, _ = note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=timedelta(days=1))
    assert seconds(breaker) == about(BREAKER_OPEN_LONGEST)
    let_pass(BREAKER_OPEN_LONGEST)
    assert take_probe(connection, HOST)[1] is True


def test_a_breaker_that_nobody_probed_for_an_hour_is_as_good_as_closed(
    connection: sa.Connection, let_pass: Pass
) -> None:
    see(connection, reference())
    open_breaker(connection)
    let_pass(timedelta(hours=2))
    assert look_at_breakers(connection) == []
    assert len(take(connection)) == 1
    breaker, was_open = note_failure(connection, HOST, KIND)
    assert (breaker.is_open, breaker.failures, was_open) == (False, 1, False)
    note_answer(connection, HOST)
    assert seconds(open_breaker(connection)) == about(BREAKER_OPEN)


def test_a_retry_after_of_nothing_opens_nothing(connection: sa.Connection) -> None:
    breaker, _ = note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=timedelta())
    assert not breaker.is_open


# -- the queue --


def test_jobs_behind_an_open_breaker_stay_due_and_untouched_while_others_go_on(
    connection: sa.Connection, let_pass: Pass
) -> None:
    see(connection, reference(image="behind"), reference(image="beside", shard="01"))
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET source_url = 'https://well.example/a.jpg' WHERE shard = '01'")
    )
    before = connection.execute(sa.text("SELECT * FROM cdn_image_jobs WHERE shard = '00'")).all()
    open_breaker(connection)
    assert [job.source_id for job in take(connection)] == ["beside"]
    assert connection.execute(sa.text("SELECT * FROM cdn_image_jobs WHERE shard = '00'")).all() == before
    let_pass(BREAKER_OPEN)
    [job] = take(connection)
    assert (job.source_id, job.host) == ("behind", HOST)


def test_a_breaker_holds_up_downloads_alone(connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(sa.text("UPDATE cdn_image_jobs SET stage = 'encode'"))
    open_breaker(connection)
    assert len(take(connection)) == 1


def test_a_claim_leaves_out_the_hosts_it_is_told_to(connection: sa.Connection) -> None:
    see(connection, reference())
    values = {"batch": 9, "total": 9}
    assert claim(connection, RUN, EVERYTHING, ["00"], **values, leaving_out={HOST}) == []
    assert len(claim(connection, RUN, EVERYTHING, ["00"], **values, leaving_out={"other.example"})) == 1


def test_a_run_waits_for_a_breaker_that_half_opens_soon_and_for_no_other(connection: sa.Connection) -> None:
    see(connection, reference())
    note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=SOON)
    horizon = timedelta(seconds=24)
    found = outlook(connection, RUN, EVERYTHING, ["00"], horizon=horizon)["00"]
    assert found.due == 0
    assert found.next_attempt_in is not None
    assert timedelta() < found.next_attempt_in <= SOON
    open_breaker(connection)
    note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=BREAKER_OPEN)
    found = outlook(connection, RUN, EVERYTHING, ["00"], horizon=horizon)["00"]
    assert (found.due, found.next_attempt_in) == (0, None)


def test_no_run_is_asked_for_because_of_a_host_that_is_left_alone(connection: sa.Connection, let_pass: Pass) -> None:
    see(connection, reference(), reference(image="2"))
    breaker = open_breaker(connection)
    demand = demand_by_shard(connection, EVERYTHING)["00"]
    assert (demand.due, demand.waiting, demand.next_attempt_at) == (0, 2, breaker.retry_at)
    let_pass(BREAKER_OPEN)
    assert demand_by_shard(connection, EVERYTHING)["00"].due == 2


# -- hosts of URLs --

LABEL = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
URLS = st.builds(
    lambda scheme, user, name, dot, port, rest: f"{scheme}://{user}{name}{dot}{port}{rest}",
    st.sampled_from(["http", "https", "HTTPS"]),
    st.sampled_from(["", "me@", "me:secret@", "a@b@"]),
    NAMES,
    st.sampled_from(["", ".", ".."]),
    st.sampled_from(["", ":80", ":"]),
    st.sampled_from(["", "/", "/a@b:c", "?x=//y@z", "#f@g", "/v/t51.jpg?oe=68&_nc_ht=other.host"]),
)


@pytest.fixture(scope="module")
def host_column() -> str:
    assert image_jobs.c.host.computed is not None
    return str(image_jobs.c.host.computed.sqltext)


def test_the_catalog_names_the_host_of_a_url_as_downloads_do(catalog: sa.Engine, host_column: str) -> None:
    query = sa.text(f"SELECT {host_column} FROM (SELECT CAST(:url AS text) AS source_url) AS job")
    with session(catalog) as connection:

        @given(URLS)
        def agree(url: str) -> None:
            assert connection.scalar(query, {"url": url}) == host_of(url)

        agree()
        for text in ("", "no URL", "//cdn.example/x", "http:///x", "mailto:me@cdn.example"):
            assert connection.scalar(query, {"url": text}) in ("", host_of(text))


def test_a_job_at_a_later_stage_keeps_the_host_of_its_url(connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(sa.text("UPDATE cdn_image_jobs SET stage = :stage"), {"stage": Stage.PUBLISH})
    assert [job.host for job in take(connection)] == [HOST]


def test_a_failure_that_only_another_version_knows_keeps_no_run_from_its_hosts(connection: sa.Connection) -> None:
    note_failure(connection, HOST, KIND)
    connection.execute(sa.text("UPDATE cdn_hosts SET failure_kind = 'of_tomorrow'"))
    (breaker,) = look_at_breakers(connection)
    assert (breaker.failures, breaker.failure) == (1, None)
