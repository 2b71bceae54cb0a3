"""The last day's figures are what a plain count of the jobs gives."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.figures import SOURCE_URL_FAILURES, figures
from cdn_pipeline_tests.observe.histories import Job, write

NOW = datetime(2026, 1, 1, tzinfo=UTC)  # of generated jobs; `write_now` moves them
DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)


def write_now(connection: sa.Connection, jobs: Sequence[Job]) -> None:
    """Writes the jobs as if `NOW` were the catalog's present."""
    shift = catalog_time(connection) - NOW
    write(connection, [_moved(job, shift) for job in jobs])


def _moved(job: Job, shift: timedelta) -> Job:
    assert job.completed_at is not None
    return replace(
        job,
        created_at=job.created_at + shift,
        completed_at=job.completed_at + shift,
        busy=tuple((start + shift, end + shift) for start, end in job.busy),
    )


def ages() -> st.SearchStrategy[timedelta]:
    """A minute's distance from the edges of hour and day: the test itself takes some time."""
    near = [HOUR - timedelta(minutes=2), HOUR + timedelta(minutes=2), DAY - timedelta(minutes=2), DAY + HOUR]
    return st.sampled_from(near) | st.integers(0, 50).map(lambda minutes: timedelta(minutes=minutes))


@st.composite
def ended_jobs(draw: st.DrawFn) -> Job:
    status = draw(st.sampled_from(("completed", "failed", "cancelled")))
    completed_at = NOW - draw(ages())
    milliseconds = st.none() | st.integers(0, 5000)
    return Job(
        status=status,
        created_at=completed_at - HOUR,
        completed_at=completed_at,
        failure_kind=draw(st.sampled_from(FailureKind)).value if status == "failed" else None,
        download_ms=draw(milliseconds),
        transcode_ms=draw(milliseconds),
        upload_ms=draw(milliseconds),
    )


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(ended_jobs(), max_size=12))
def test_figures_are_those_of_a_plain_count(catalog: sa.Engine, jobs: Sequence[Job]) -> None:
    with catalog.connect() as connection, connection.begin() as undone:
        write_now(connection, jobs)
        found = figures(connection, INSTAGRAM)
        undone.rollback()
    ended = [job for job in jobs if job.status != "cancelled" and age(job) < DAY]
    completed = [job for job in ended if job.status == "completed"]
    failed = [job for job in ended if job.status == "failed"]
    assert (found.jobs.completed, found.jobs.failed) == (len(completed), len(failed))
    assert found.jobs.ended_last_hour == sum(age(job) < HOUR for job in ended)
    totals = sorted(total(job) for job in completed)
    assert found.jobs.p95_processing_ms == (totals[math.ceil(0.95 * len(totals)) - 1] if totals else None)
    assert found.jobs.mean_processing_ms == mean(totals)
    assert found.jobs.mean_download_ms == mean([job.download_ms for job in ended if job.download_ms is not None])
    assert found.jobs.mean_upload_ms == mean([job.upload_ms for job in ended if job.upload_ms is not None])
    assert {each.kind: each.jobs for each in found.errors} == Counter(job.failure_kind for job in failed)
    assert [each.jobs for each in found.errors] == sorted((each.jobs for each in found.errors), reverse=True)
    refused = sum(job.failure_kind in SOURCE_URL_FAILURES for job in failed)
    assert found.jobs.source_url_failure_rate == (refused / len(ended) if ended else None)
    assert found.utilization == 0


def age(job: Job) -> timedelta:
    assert job.completed_at is not None
    return NOW - job.completed_at


def total(job: Job) -> int:
    return (job.download_ms or 0) + (job.transcode_ms or 0) + (job.upload_ms or 0)


def mean(values: Sequence[int]) -> int | None:
    return math.floor(sum(values) / len(values) + 0.5) if values else None


def test_utilization_is_the_share_of_the_last_hour_in_which_anything_was_in_hand(catalog: sa.Engine) -> None:
    quarter = timedelta(minutes=15)
    first, second = NOW - 3 * quarter, NOW - 2 * quarter
    half = [
        Job("completed", NOW - DAY, NOW - quarter, busy=((first, second),)),
        Job("failed", NOW - DAY, NOW - quarter, busy=((first, second + quarter),), failure_kind="source_gone"),
    ]
    with catalog.begin() as connection:
        write_now(connection, half)
        assert figures(connection, INSTAGRAM).utilization == pytest.approx(0.5, abs=0.01)


def test_the_retried_ones_that_were_completed_are_told(catalog: sa.Engine) -> None:
    ended = [Job("completed", NOW - HOUR, NOW), Job("failed", NOW - HOUR, NOW, failure_kind="source_gone")]
    with catalog.begin() as connection:
        write_now(connection, [*ended, Job("completed", NOW - HOUR, NOW)])
        assert figures(connection, INSTAGRAM).jobs.retry_success_rate is None
        connection.execute(sa.text("UPDATE cdn_image_jobs SET retry_count = 2"))
        assert figures(connection, INSTAGRAM).jobs.retry_success_rate == pytest.approx(2 / 3)
