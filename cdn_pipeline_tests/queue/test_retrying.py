"""An operator's retry: every job that is named gets an answer, and what can be done is due at once."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.retrying import Retry, RetryAnswer, retry_jobs
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    image,
    jobs,
    open_jobs,
    original_of,
    outcome,
    published,
    reference,
    refuse_illegal_transitions,
    register,
    see,
    session,
    source_url,
    take_one,
)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    refuse_illegal_transitions(catalog)
    with session(catalog) as connection:
        register(connection, RUN)
        yield connection


def retry(connection: sa.Connection, *job_ids: uuid.UUID, priority: int = 2) -> list[Retry]:
    return list(retry_jobs(connection, INSTAGRAM, job_ids, priority=priority))


def answer(connection: sa.Connection, job_id: uuid.UUID) -> RetryAnswer:
    (found,) = retry(connection, job_id)
    return found.answer


def end(connection: sa.Connection, verdict: Verdict, failure: FailureKind, **more: Any) -> uuid.UUID:
    """The only due job ends so; its id."""
    job = take_one(connection)
    settle(connection, RUN, [outcome(job, verdict, failure=failure, **more)])
    return job.job_id


def test_a_failed_image_is_tried_again_from_its_source_ahead_of_the_others(connection: sa.Connection) -> None:
    see(connection, reference(source_type="post_thumbnail"))
    failed = end(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT)
    (found,) = retry(connection, failed, priority=1)
    job = take_one(connection)
    assert found == Retry(failed, RetryAnswer.REOPENED, job.job_id, "00")
    assert (job.job_type, job.stage, job.priority, job.retry_count) == (JobType.RETRY, Stage.DOWNLOAD, 1, 0)
    assert (image(connection)["failure_kind"], image(connection)["processing_attempts"]) == (None, 1)


def test_that_a_picture_was_gone_is_known_at_every_attempt_of_its_retry(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    retry(connection, failed)
    end(connection, Verdict.RETRYING, FailureKind.SOURCE_ERROR)
    assert take_one(connection).last_failure is FailureKind.SOURCE_GONE


def test_a_retry_that_misses_its_original_knows_that_instead(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    retry(connection, failed)
    end(connection, Verdict.RETRYING, FailureKind.ORIGINAL_MISSING)
    assert take_one(connection).last_failure is FailureKind.ORIGINAL_MISSING


def test_a_picture_that_comes_back_is_not_gone_any_more(connection: sa.Connection) -> None:
    see(connection, reference())
    retry(connection, end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE))
    settle(connection, RUN, [published(take_one(connection))])
    assert image(connection)["failure_kind"] is None


def test_a_picture_that_did_not_decode_is_tried_again_from_its_stored_original(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    settle(
        connection,
        RUN,
        [outcome(job, Verdict.FAILED, Stage.ENCODE, failure=FailureKind.IMAGE_CORRUPT, original=original_of(job))],
    )
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 day'"))
    assert answer(connection, job.job_id) is RetryAnswer.REOPENED
    assert take_one(connection).stage is Stage.ENCODE


def test_what_waits_for_a_later_attempt_is_due_now_as_if_it_had_not_been_tried(connection: sa.Connection) -> None:
    see(connection, reference())
    waiting = end(connection, Verdict.RETRYING, FailureKind.SOURCE_ERROR, retry_in_seconds=3600.0)
    assert answer(connection, waiting) is RetryAnswer.HURRIED
    job = take_one(connection)
    assert (job.job_id, job.retry_count) == (waiting, 0)


def test_what_is_on_hold_stays_so_and_is_told(connection: sa.Connection) -> None:
    see(connection, reference())
    waiting = end(connection, Verdict.RETRYING, FailureKind.SOURCE_ERROR, retry_in_seconds=3600.0)
    hold_queue(connection, INSTAGRAM)
    (found,) = retry(connection, waiting)
    assert found == Retry(waiting, RetryAnswer.HELD, waiting, "00")
    (job,) = jobs(connection)
    assert job["held_at"] is not None
    assert (job["retry_count"], job["priority"]) == (1, 2)


def test_a_failed_job_whose_image_has_another_on_hold_is_told_so(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    retry(connection, failed)
    hold_queue(connection, INSTAGRAM)
    assert answer(connection, failed) is RetryAnswer.HELD


def test_an_image_whose_url_is_dead_goes_on_waiting_for_a_fresh_one(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(hours=1))))
    expired = end(connection, Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 hour'"))
    assert answer(connection, expired) is RetryAnswer.WAITS_FOR_URL
    assert not open_jobs(connection)


def test_an_image_that_was_published_since_is_left_alone(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    retry(connection, failed)
    settle(connection, RUN, [published(take_one(connection))])
    assert answer(connection, failed) is RetryAnswer.COMPLETED
    assert not open_jobs(connection)


def test_two_failed_jobs_of_one_image_open_one_job(connection: sa.Connection) -> None:
    see(connection, reference())
    first = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    retry(connection, first)
    second = end(connection, Verdict.FAILED, FailureKind.SOURCE_GONE)
    found = retry(connection, first, second, first)
    assert [each.job_id for each in found] == [first, second]
    assert {each.answer for each in found} == {RetryAnswer.REOPENED}
    assert len(open_jobs(connection)) == 1


def test_what_is_open_erased_or_unknown_is_told(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    assert answer(connection, job.job_id) is RetryAnswer.OPEN
    settle(connection, RUN, [outcome(job, Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    connection.execute(sa.text("DELETE FROM cdn_image_assets"))
    assert answer(connection, job.job_id) is RetryAnswer.ERASED
    assert answer(connection, uuid.uuid4()) is RetryAnswer.UNKNOWN
    assert len(jobs(connection)) == 1
