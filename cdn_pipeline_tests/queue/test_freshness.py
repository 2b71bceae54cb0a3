import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.freshness import (
    CHECKED_LATELY,
    REFUSED_LATELY,
    open_checks,
    release_retries,
    reopen_refused,
)
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline.sources.instagram import parse
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    image,
    jobs,
    open_jobs,
    original_of,
    outcome,
    publish,
    published,
    reference,
    see,
    source_url,
    take,
    take_one,
    visible,
)

SHARDS = ["00"]
ANOTHER_COLLECTION = dataclasses.replace(INSTAGRAM, name="vehicles")
UNNAMED = parse("https://vendor.example/cars/4711/front.jpg")
"""A URL whose identity is all of it, and that never expires."""

SIX_HOURS = timedelta(hours=6)


def retry(connection: sa.Connection, job: DueJob, after: timedelta = SIX_HOURS) -> None:
    failed = outcome(
        job, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, retry_in_seconds=after.total_seconds(), total_ms=100
    )
    settle(connection, RUN, [failed])


def publish_unnamed(connection: sa.Connection, *, completed: timedelta = timedelta(days=1)) -> DueJob:
    """An image whose picture may change under its URL, published so long ago."""
    see(connection, reference(UNNAMED))
    job = publish(connection)
    let_pass(connection, completed)
    return job


def let_pass(connection: sa.Connection, time: timedelta) -> None:
    connection.execute(
        sa.text("UPDATE cdn_image_assets SET processing_completed_at = processing_completed_at - CAST(:t AS interval)"),
        {"t": time},
    )


# -- retries --


def test_a_retry_that_waits_is_due_now_and_its_attempts_go_on_counting(connection: sa.Connection) -> None:
    see(connection, reference())
    retry(connection, take_one(connection))
    assert take(connection) == []
    assert release_retries(connection, INSTAGRAM, SHARDS) == 1
    job = take_one(connection)
    assert (job.retry_count, job.last_failure) == (1, FailureKind.SOURCE_ERROR)


def test_what_is_due_already_is_not_released(connection: sa.Connection) -> None:
    see(connection, reference())
    before = jobs(connection)
    assert release_retries(connection, INSTAGRAM, SHARDS) == 0
    assert jobs(connection) == before


def test_a_held_retry_stays_as_it_is(connection: sa.Connection) -> None:
    see(connection, reference())
    retry(connection, take_one(connection))
    connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = now()"))
    before = jobs(connection)
    assert release_retries(connection, INSTAGRAM, SHARDS) == 0
    assert jobs(connection) == before


def test_a_retry_in_hand_stays_in_hand(connection: sa.Connection) -> None:
    see(connection, reference())
    retry(connection, take_one(connection))
    release_retries(connection, INSTAGRAM, SHARDS)
    take_one(connection)
    connection.execute(sa.text("UPDATE cdn_image_jobs SET next_attempt_at = now() + interval '1 hour'"))
    before = jobs(connection)
    assert release_retries(connection, INSTAGRAM, SHARDS) == 0
    assert jobs(connection) == before


def test_retries_of_other_shards_and_collections_wait_on(connection: sa.Connection) -> None:
    see(connection, *(reference(image=shard, shard=shard) for shard in ("00", "01", "02")))
    for job in take(connection):
        retry(connection, job)
    assert release_retries(connection, ANOTHER_COLLECTION, ["00", "01", "02"]) == 0
    assert release_retries(connection, INSTAGRAM, []) == 0
    assert release_retries(connection, INSTAGRAM, ["00", "02"]) == 2
    assert {job.shard for job in take(connection)} == {"00", "02"}


# -- refusals that may have passed --


def refuse(connection: sa.Connection, kind: FailureKind = FailureKind.SOURCE_FORBIDDEN) -> None:
    """The only due job, refused yesterday."""
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=kind)])
    tried(connection, timedelta(days=1))


def tried(connection: sa.Connection, ago: timedelta) -> None:
    connection.execute(sa.text("UPDATE cdn_image_assets SET processing_started_at = now() - :t"), {"t": ago})


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (FailureKind.SOURCE_FORBIDDEN, 1),
        (FailureKind.NOT_AN_IMAGE, 1),
        (FailureKind.TOO_MANY_REDIRECTS, 1),
        (FailureKind.BLOCKED_ADDRESS, 1),
        (FailureKind.SIGNATURE_MISMATCH, 0),
        (FailureKind.SOURCE_URL_404, 0),
        (FailureKind.SOURCE_URL_EXPIRED, 0),
    ],
)
def test_what_was_refused_is_tried_again_where_that_may_have_passed(
    connection: sa.Connection, kind: FailureKind, again: int
) -> None:
    see(connection, reference())
    refuse(connection, kind)
    assert take(connection) == []
    assert reopen_refused(connection, INSTAGRAM, SHARDS) == len(open_jobs(connection)) == again


def test_what_is_refused_again_waits_again_until_the_next_night(connection: sa.Connection) -> None:
    see(connection, reference())
    refuse(connection)
    assert [reopen_refused(connection, INSTAGRAM, SHARDS) for _ in range(2)] == [1, 0]
    job = take_one(connection)
    assert (job.job_type, job.stage, job.priority, job.retry_count) == (
        JobType.RETRY,
        Stage.DOWNLOAD,
        BACKFILL_PRIORITY,
        0,
    )
    settle(connection, RUN, [outcome(job, Verdict.WAITING, failure=FailureKind.SOURCE_FORBIDDEN)])
    assert reopen_refused(connection, INSTAGRAM, SHARDS) == 0
    tried(connection, REFUSED_LATELY)
    assert reopen_refused(connection, INSTAGRAM, SHARDS) == 1
    publish(connection)
    assert (image(connection)["processing_status"], image(connection)["failure_kind"]) == ("completed", None)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("url_expires_at = clock_timestamp() - interval '1 second'", 0),
        ("url_expires_at = NULL", 1),
        ("removed_at = clock_timestamp()", 0),
    ],
)
def test_only_a_url_that_lives_and_is_still_wanted_is_tried_again(
    connection: sa.Connection, change: str, again: int
) -> None:
    see(connection, reference())
    refuse(connection)
    connection.execute(sa.text(f"UPDATE cdn_image_assets SET {change}"))
    assert reopen_refused(connection, INSTAGRAM, SHARDS) == again


def test_refused_images_of_other_shards_and_collections_wait_on(connection: sa.Connection) -> None:
    see(connection, *(reference(image=shard, shard=shard) for shard in ("00", "01", "02")))
    refused = [outcome(job, Verdict.WAITING, failure=FailureKind.NOT_AN_IMAGE) for job in take(connection)]
    settle(connection, RUN, refused)
    tried(connection, timedelta(days=1))
    assert reopen_refused(connection, ANOTHER_COLLECTION, ["00", "01", "02"]) == 0
    assert reopen_refused(connection, INSTAGRAM, []) == 0
    assert reopen_refused(connection, INSTAGRAM, ["00", "02"]) == 2
    assert {job.shard for job in take(connection)} == {"00", "02"}


# -- checks at the source --


def test_a_picture_that_may_change_under_its_url_is_asked_for(connection: sa.Connection) -> None:
    publish_unnamed(connection)
    before = visible(connection)
    assert open_checks(connection, INSTAGRAM, SHARDS) == 1
    assert image(connection)["processing_status"] == "pending"
    assert visible(connection) == before
    job = take_one(connection)
    assert (job.job_type, job.stage, job.priority, job.force) == (
        JobType.UPDATE,
        Stage.DOWNLOAD,
        BACKFILL_PRIORITY,
        False,
    )
    assert job.urls == (UNNAMED.url,)


def test_an_identity_that_names_the_picture_is_not_asked_for(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=None)))
    publish(connection)
    let_pass(connection, timedelta(days=1))
    assert open_checks(connection, INSTAGRAM, SHARDS) == 0
    assert image(connection)["processing_status"] == "completed"


def test_a_second_call_and_the_next_night_open_nothing_more(connection: sa.Connection) -> None:
    publish_unnamed(connection)
    assert [open_checks(connection, INSTAGRAM, SHARDS) for _ in range(2)] == [1, 0]
    settle(connection, RUN, [outcome(take_one(connection), Verdict.UNCHANGED)])
    assert open_checks(connection, INSTAGRAM, SHARDS) == 0
    let_pass(connection, CHECKED_LATELY)
    assert open_checks(connection, INSTAGRAM, SHARDS) == 1
    assert len(open_jobs(connection)) == 1


def test_a_check_that_was_refused_is_repeated_and_remembers_it(connection: sa.Connection) -> None:
    """No fresh URL will come: the URL is the identity."""
    publish_unnamed(connection)
    open_checks(connection, INSTAGRAM, SHARDS)
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SOURCE_URL_404)])
    let_pass(connection, timedelta(days=1))
    assert open_checks(connection, INSTAGRAM, SHARDS) == 1
    assert take_one(connection).last_failure is FailureKind.SOURCE_URL_404


def test_a_check_that_failed_for_good_is_not_repeated(connection: sa.Connection) -> None:
    publish_unnamed(connection)
    open_checks(connection, INSTAGRAM, SHARDS)
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    let_pass(connection, timedelta(days=1))
    assert open_checks(connection, INSTAGRAM, SHARDS) == 0


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ("source_etag = NULL", 0),  # the original came without Last-Modified
        ("source_etag = NULL, source_last_modified = 'Fri, 21 Nov 2025 12:00:00 GMT'", 1),
        ("url_expires_at = clock_timestamp() - interval '1 second'", 0),
        ("url_expires_at = clock_timestamp() + interval '1 hour'", 1),
        ("removed_at = clock_timestamp()", 0),
        ("original_identity = 'url:another'", 0),
        ("original_rank = rank - 1", 0),
    ],
)
def test_only_where_the_answer_is_cheap_and_of_use(connection: sa.Connection, change: str, asked: int) -> None:
    publish_unnamed(connection)
    connection.execute(sa.text(f"UPDATE cdn_image_assets SET {change}"))
    assert open_checks(connection, INSTAGRAM, SHARDS) == asked


def _hold(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = now() WHERE status = 'queued'"))


def _claim(connection: sa.Connection) -> None:
    take_one(connection)


@pytest.mark.parametrize("meanwhile", [lambda _: None, _hold, _claim], ids=["queued", "held", "in hand"])
def test_an_open_job_is_left_alone(connection: sa.Connection, meanwhile: Callable[[sa.Connection], None]) -> None:
    publish_unnamed(connection)
    open_checks(connection, INSTAGRAM, SHARDS)
    meanwhile(connection)
    before = image(connection), jobs(connection)
    assert open_checks(connection, INSTAGRAM, SHARDS) == 0
    assert (image(connection), jobs(connection)) == before


def test_a_picture_that_changed_is_published_in_place_of_the_old_one(connection: sa.Connection) -> None:
    publish_unnamed(connection)
    before = visible(connection)
    open_checks(connection, INSTAGRAM, SHARDS)
    job = take_one(connection)
    other = dataclasses.replace(published(job, "y", "B"), original=original_of(job, "B"))
    settle(connection, RUN, [other])
    assert visible(connection) != before
    assert image(connection)["processing_status"] == "completed"


def test_checks_are_opened_in_the_given_shards_of_the_collection(connection: sa.Connection) -> None:
    see(connection, *(reference(UNNAMED, image=shard, shard=shard) for shard in ("00", "01", "02")))
    settle(connection, RUN, [published(job) for job in take(connection)])
    let_pass(connection, timedelta(days=1))
    assert open_checks(connection, ANOTHER_COLLECTION, ["00", "01", "02"]) == 0
    assert open_checks(connection, INSTAGRAM, []) == 0
    assert open_checks(connection, INSTAGRAM, ["00", "02"]) == 2
    assert {job.shard for job in take(connection)} == {"00", "02"}
