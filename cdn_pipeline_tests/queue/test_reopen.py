import dataclasses
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, INSTAGRAM, REENCODE_PRIORITY
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.reopen import open_jobs_again
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    image,
    open_jobs,
    original_of,
    outcome,
    paths,
    publish,
    published,
    reference,
    see,
    source_url,
    take,
    take_one,
    visible,
)

NEXT_VERSION = dataclasses.replace(
    INSTAGRAM, recipe=dataclasses.replace(INSTAGRAM.recipe, version=INSTAGRAM.recipe.version + 1)
)


def reopen(connection: sa.Connection, collection: Any = INSTAGRAM, **more: Any) -> int:
    asked = {"from_originals": False, "force": False, "owner_ids": None, "limit": None, "shards": ["00"], **more}
    return open_jobs_again(connection, collection, **asked)


def test_a_new_recipe_version_encodes_again_from_originals_at_the_lowest_priority(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert reopen(connection, from_originals=True) == 0
    assert reopen(connection, NEXT_VERSION, from_originals=True) == 1
    job = take_one(connection)
    assert (job.stage, job.job_type, job.priority, job.force) == (
        Stage.ENCODE,
        JobType.UPDATE,
        REENCODE_PRIORITY,
        False,
    )
    assert visible(connection) == paths("x")


def test_force_encodes_again_what_is_of_the_version_already(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert reopen(connection, from_originals=True, force=True) == 1
    job = take_one(connection)
    assert (job.stage, job.force) == (Stage.ENCODE, True)


def test_force_downloads_again(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert reopen(connection, force=True) == 1
    job = take_one(connection)
    assert (job.stage, job.job_type, job.priority, job.force) == (
        Stage.DOWNLOAD,
        JobType.UPDATE,
        BACKFILL_PRIORITY,
        True,
    )


def test_an_expired_url_is_not_downloaded_again_so_a_published_image_stays_completed(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 second'"))
    assert reopen(connection, force=True) == 0
    assert image(connection)["processing_status"] == "completed"
    assert reopen(connection, from_originals=True, force=True) == 1


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.WAITING])
def test_an_operator_reopens_failed_and_waiting_images_with_fresh_attempts(
    connection: sa.Connection, verdict: Verdict
) -> None:
    see(connection, reference())
    settle(connection, RUN, [outcome(take_one(connection), verdict, failure=FailureKind.SOURCE_URL_404)])
    assert reopen(connection, force=True) == 1
    assert image(connection)["processing_attempts"] == 0
    job = take_one(connection)
    assert (job.job_type, job.retry_count, job.last_failure) == (JobType.RETRY, 0, None)


def test_a_failed_image_whose_url_has_expired_can_be_made_to_wait_for_a_fresh_one(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.BLOCKED_ADDRESS)])
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 day'"))
    assert reopen(connection, force=True) == 1
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SOURCE_URL_EXPIRED)])
    see(connection, reference(source_url("fresh", lives=timedelta(days=9))))
    assert len(open_jobs(connection)) == 1


@pytest.mark.parametrize("in_hand", [False, True])
def test_an_open_job_is_left_alone(connection: sa.Connection, in_hand: bool) -> None:
    see(connection, reference())
    if in_hand:
        take_one(connection)
    before = image(connection), open_jobs(connection)
    assert reopen(connection, force=True) == 0
    assert (image(connection), open_jobs(connection)) == before


def test_reopening_twice_opens_one_job(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert [reopen(connection, force=True) for _ in range(2)] == [1, 0]
    assert len(open_jobs(connection)) == 1


def test_an_original_of_an_earlier_picture_is_not_encoded_again(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    publish(connection)
    see(connection, reference(source_url(picture="B")))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])
    assert reopen(connection, from_originals=True, force=True) == 0


def test_a_corrupt_picture_is_decoded_again_only_when_asked(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    failed = outcome(job, Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, original=original_of(job))
    settle(connection, RUN, [failed])
    assert open_jobs(connection) == []
    assert reopen(connection, from_originals=True) == 1


def test_shards_owners_limit_and_collection_are_respected(connection: sa.Connection) -> None:
    see(
        connection,
        *(
            reference(image=f"{shard}{owner}", shard=shard, owner=owner)
            for shard in ("00", "01", "02")
            for owner in ("a", "b")
        ),
    )
    settle(connection, RUN, [published(job) for job in take(connection)])
    assert reopen(connection, dataclasses.replace(INSTAGRAM, name="vehicles"), force=True) == 0
    assert reopen(connection, force=True, shards=["02"], limit=1) == 1
    take(connection)
    assert reopen(connection, force=True, shards=["00", "01"], owner_ids=["a"]) == 2
    assert {(job.shard, job.owner_id) for job in take(connection)} == {("00", "a"), ("01", "a")}
    assert reopen(connection, force=True, owner_ids=[]) == 0
