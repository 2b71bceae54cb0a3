"""The story has the facts of the catalog, in the order in which they are told."""

import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.story import ImageStory, tell_stories
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    image,
    outcome,
    paths,
    publish,
    reference,
    see,
    session,
    source_url,
    take_one,
)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def story(connection: sa.Connection) -> ImageStory:
    (story,) = stories_of(connection, [image(connection)["id"]])
    return story


def stories_of(connection: sa.Connection, ids: Sequence[uuid.UUID]) -> list[ImageStory]:
    with snapshot(connection.engine) as now:
        return tell_stories(now, INSTAGRAM, ids)


def test_stories_keep_the_order_that_was_asked_for_and_leave_out_what_is_no_image(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number)) for number in range(3)))
    ids = list(connection.scalars(sa.text("SELECT id FROM cdn_image_assets ORDER BY id DESC")))
    stories = stories_of(connection, [ids[0], uuid.uuid4(), *ids[1:]])
    assert [story.image_id for story in stories] == ids
    assert stories_of(connection, []) == []


def test_a_replaced_picture_keeps_its_history(connection: sa.Connection) -> None:
    see(connection, reference(source_url(picture="old"), age=timedelta(hours=1)))
    publish(connection, content="old", sha256="O")
    see(connection, reference(source_url(picture="new"), age=timedelta()))
    told = story(connection)
    assert told.current.identity == "file:new"
    assert told.original is not None
    assert (told.original.sha256, told.original.identity) == ("O", "file:old")
    assert [job.job_type for job in told.jobs] == [JobType.UPDATE, JobType.INGEST]
    assert told.open_job is told.jobs[0]
    assert told.earlier_urls == (source_url(picture="old").url,)
    assert {rendition.path for rendition in told.visible} == set(paths("old"))
    publish(connection, content="new", sha256="N")
    told = story(connection)
    assert told.open_job is None
    assert [rendition.state for rendition in told.renditions] == ["current"] * 2 + ["superseded"] * 2
    assert {rendition.url for rendition in told.visible} == {f"http://127.0.0.1:8000{path}" for path in paths("new")}
    assert told.status is ImageStatus.COMPLETED


def test_fallbacks_are_those_of_the_sighting(connection: sa.Connection) -> None:
    see(connection, reference(source_url("hd", rank=1000), source_url("standard", rank=500)))
    told = story(connection)
    assert (told.current.rank, [fallback.rank for fallback in told.fallbacks]) == (1000, [500])
    assert told.fallbacks[0].expires_at == told.current.expires_at
    assert told.earlier_urls == ()


def test_attempts_are_counted_until_they_end(connection: sa.Connection) -> None:
    def attempts() -> tuple[int, JobStatus]:
        job = story(connection).jobs[0]
        return job.attempts, job.status

    see(connection, reference())
    assert attempts() == (0, JobStatus.QUEUED)
    job = take_one(connection)
    assert attempts() == (1, JobStatus.PROCESSING)
    settle(connection, RUN, [outcome(job, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, detail="HTTP 503")])
    assert attempts() == (1, JobStatus.QUEUED)
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])
    assert attempts() == (2, JobStatus.FAILED)
    told = story(connection)
    assert (told.failure, told.jobs[0].failure) == (FailureKind.IMAGE_CORRUPT, FailureKind.IMAGE_CORRUPT)


def test_a_failure_that_only_another_version_knows_is_told_without_its_kind(connection: sa.Connection) -> None:
    see(connection, reference())
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    for table in ("cdn_image_assets", "cdn_image_jobs"):
        connection.execute(sa.text(f"UPDATE {table} SET failure_kind = 'of_tomorrow'"))
    told = story(connection)
    assert (told.status, told.failure, told.jobs[0].failure) == (ImageStatus.FAILED, None, None)
