"""Feasibility against a naive simulation, and its words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.feasibility import Feasibility, feasibility
from cdn_pipeline.observe.thresholds import MINIMUM_SAMPLE
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.queue.catalogs import NOW, RUN, published, reference, see, source_url, take

# Deadlines fall beside every moment at which an image can be reached, so that rounding decides nothing.
BESIDE = 0.123457


@dataclass(frozen=True)
class Ended:
    """A job that ended: seconds before now, and how long each of its attempts took, the last first."""

    ago: int
    attempts: tuple[int, ...]
    downloaded: bool

    def busy(self) -> list[tuple[float, float]]:
        """The attempts as (start, end) in seconds from now, ten minutes apart."""
        return [
            (-self.ago - number * 600 - took, -self.ago - number * 600) for number, took in enumerate(self.attempts)
        ]


@dataclass(frozen=True)
class Waiting:
    """A queued job; times in seconds from now."""

    priority: int
    deadline: float | None
    next_attempt: int
    stage: str
    held: bool


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction, in which the catalog's `now()` stands still."""
    with catalog.begin() as connection:
        yield connection


DAY = 86400
ENDED = st.builds(
    Ended,
    st.integers(0, DAY) | st.integers(0, 600),
    st.lists(st.integers(0, 90), min_size=1, max_size=3).map(tuple),
    st.sampled_from([True, True, True, False]),
)
WAITING = st.builds(
    Waiting,
    st.integers(1, 10),
    st.none() | (st.integers(-100, 2000) | st.integers(-100, 2 * DAY)).map(lambda seconds: seconds + BESIDE),
    st.sampled_from([-100, 0, 0, 5000]),
    st.sampled_from(["download", "download", "download", "encode"]),
    st.sampled_from([False, False, False, True]),
)


@given(
    st.lists(ENDED, max_size=19) | st.lists(ENDED, min_size=26, max_size=45),
    st.lists(WAITING, max_size=60, unique_by=lambda job: job.deadline or job),  # equal deadlines have no order
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_query_says_what_a_simulation_of_the_queue_says(
    connection: sa.Connection, ended: list[Ended], waiting: list[Waiting]
) -> None:
    connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))
    now = _write(connection, ended, waiting)

    found = feasibility(connection, INSTAGRAM)

    rate = _rate(ended)
    assert found.rate == (None if rate is None else pytest.approx(rate))
    at_risk = _too_late(waiting, rate)
    assert found.waiting == sum(job.stage == "download" for job in waiting)
    assert (found.at_risk, found.at_risk_on_hold) == (len(at_risk), len(_soon_dead_on_hold(waiting)))
    assert found.first_at_risk == (now + timedelta(seconds=min(at_risk)) if at_risk else None)


def _rate(ended: Sequence[Ended]) -> float | None:
    sample = [job for job in ended if job.downloaded and job.ago < DAY]
    if len(sample) < MINIMUM_SAMPLE:
        return None
    begins = min(job.busy()[0][0] for job in sample)
    in_hand, until = 0.0, begins
    for start, end in sorted(attempt for job in sample for attempt in job.busy()):
        in_hand += max(0.0, end - max(start, until))
        until = max(until, end)
    return len(sample) / in_hand if in_hand else None


def _too_late(waiting: Sequence[Waiting], rate: float | None) -> list[float]:
    """The deadlines of the images that expire first."""
    to_download = [job for job in waiting if job.stage == "download" and not job.held]
    in_order = sorted(to_download, key=lambda job: (job.priority, job.deadline is None, job.deadline or 0.0))
    late = _soon_dead_on_hold(waiting)
    for number, job in enumerate(in_order, start=1):
        reached = max(job.next_attempt, number / rate if rate else 0)
        if job.deadline is not None and job.deadline < reached:
            late.append(job.deadline)
    return late


def _soon_dead_on_hold(waiting: Sequence[Waiting]) -> list[float]:
    deadlines = [job.deadline for job in waiting if job.stage == "download" and job.held]
    return [deadline for deadline in deadlines if deadline is not None and deadline < DAY]


def _write(connection: sa.Connection, ended: Sequence[Ended], waiting: Sequence[Waiting]) -> datetime:
    now = connection.scalar(sa.text("SELECT now()"))
    assert isinstance(now, datetime)

    def after(seconds: float | None) -> datetime | None:
        return None if seconds is None else now + timedelta(seconds=seconds)

    for job in ended:
        busy = job.busy()
        _insert_job(
            connection,
            status="completed",
            stage="publish",
            started_at=after(busy[0][0]),
            completed_at=after(-job.ago),
            download_ms=100 if job.downloaded else None,
            starts=[after(start) for start, _ in busy],
            ends=[after(end) for _, end in busy],
        )
    for queued in waiting:
        _insert_job(
            connection,
            status="queued",
            stage=queued.stage,
            priority=queued.priority,
            deadline=after(queued.deadline),
            next_attempt_at=after(queued.next_attempt),
            held_at=now if queued.held else None,
        )
    return now


def _insert_job(connection: sa.Connection, **values: object) -> None:
    defaults: dict[str, object] = {
        **dict.fromkeys(("started_at", "completed_at", "download_ms", "deadline", "held_at")),
        "priority": 4,
        "next_attempt_at": NOW,
        "starts": [],
        "ends": [],
    }
    connection.execute(
        sa.text("""
            WITH image AS (
                INSERT INTO cdn_image_assets (collection, shard, owner_id, source_type, source_id, media_id, source_url,
                                              identity, rank, observed_at)
                VALUES ('instagram', '00', 'owner', 'post_thumbnail', CAST(gen_random_uuid() AS text), 'm', 'http://x/',
                        'i', 1, now())
                RETURNING id
            )
            INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url, status, stage, priority,
                                        deadline, next_attempt_at, held_at, started_at, completed_at, download_ms, busy)
            SELECT id, 'instagram', '00', 'ingest', 'http://x/', :status, :stage, :priority, :deadline,
                   :next_attempt_at, :held_at, :started_at, :completed_at, :download_ms,
                   coalesce((SELECT range_agg(tstzrange(starts, ends))
                             FROM unnest(CAST(:starts AS timestamptz[]), CAST(:ends AS timestamptz[]))
                                  AS attempt(starts, ends)), '{}')
            FROM image"""),
        {**defaults, **values},
    )


def test_of_an_empty_queue_there_is_nothing_to_tell(connection: sa.Connection) -> None:
    assert feasibility(connection, INSTAGRAM) == Feasibility(None, 0, 0, 0, None, "no image waits for its download")


def test_words_say_how_many_at_what_rate_and_when(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        see(connection, reference(source_url(lives=timedelta(days=3))))
        found = feasibility(connection, INSTAGRAM)
        assert found.words == "of 1 waiting images none expires before we reach it (no rate measured yet)"
        see(connection, reference(source_url(lives=timedelta(minutes=-30)), image="2"))
        found = feasibility(connection, INSTAGRAM)
    expired_at = f"{NOW - timedelta(minutes=30):%Y-%m-%d %H:%M:%S} UTC"
    assert (found.waiting, found.at_risk) == (2, 1)
    assert found.words == (
        f"of 2 waiting images 1 will have expired when we reach them (no rate measured yet), the first at {expired_at}"
    )


def test_an_image_on_hold_is_at_risk_on_its_last_day(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        see(connection, *(reference(source_url(lives=timedelta(hours=hours)), image=str(hours)) for hours in (9, 90)))
        assert feasibility(connection, INSTAGRAM).at_risk == 0
        hold_queue(connection, INSTAGRAM)
        found = feasibility(connection, INSTAGRAM)
    assert (found.waiting, found.at_risk, found.at_risk_on_hold) == (2, 1, 1)
    assert "of 2 waiting images 1 will have expired when we reach them (no rate measured yet), 1 of them on hold, " in (
        found.words
    )


def test_the_rate_is_that_of_jobs_as_the_queue_writes_them(catalog: sa.Engine) -> None:
    with catalog.connect() as session:
        connection = session.execution_options(isolation_level="AUTOCOMMIT")
        see(connection, *(reference(image=str(number)) for number in range(MINIMUM_SAMPLE)))
        jobs = take(connection)
        assert feasibility(connection, INSTAGRAM).rate is None
        settle(connection, RUN, [replace(published(job), renditions=(), download_ms=5) for job in jobs])
        found = feasibility(connection, INSTAGRAM)
        in_hand = connection.scalar(
            sa.text("SELECT extract(epoch FROM max(completed_at) - min(started_at)) FROM cdn_image_jobs")
        )
    assert found.rate == pytest.approx(MINIMUM_SAMPLE / float(in_hand or 0), rel=0.01)
