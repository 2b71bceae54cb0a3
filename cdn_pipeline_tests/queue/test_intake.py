import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import INSTAGRAM, REENCODE_PRIORITY
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.due import claim
from cdn_pipeline.queue.intake import known_images, lock_images, record
from cdn_pipeline.queue.leases import Run, release_dead_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.presence import mark_sighted
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline.sources.discovery import Change, ImageReference, compare
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    NOW,
    RUN,
    advanced,
    due_now,
    image,
    jobs,
    open_jobs,
    outcome,
    publish,
    published,
    reference,
    refuse_illegal_transitions,
    see,
    session,
    source_url,
    take,
    take_one,
)

HOUR_AGO = timedelta(hours=1)


def see_one(connection: sa.Connection, seen: ImageReference) -> Change:
    (sighting,) = see(connection, seen)
    return sighting.change


def fail(connection: sa.Connection, verdict: Verdict, kind: FailureKind) -> None:
    settle(connection, RUN, [outcome(take_one(connection), verdict, failure=kind)])


# -- new --


def test_a_new_image_is_written_and_gets_a_job(connection: sa.Connection) -> None:
    seen = replace(reference(image="7", owner="o", shard="2a", source_type="post_thumbnail"), taken_at=NOW)
    assert see_one(connection, seen) is Change.NEW
    row, (job,) = image(connection), jobs(connection)
    assert (row["source_type"], row["source_id"], row["media_id"]) == ("post_thumbnail", "7", "avatar")
    assert (row["owner_id"], row["shard"], row["collection"]) == ("o", "2a", "instagram")
    assert (row["source_url"], row["identity"], row["rank"]) == (source_url().url, "file:A", 1000)
    assert (row["taken_at"], row["observed_at"], row["url_expires_at"]) == (NOW, NOW, source_url().expires_at)
    assert (row["processing_status"], row["failure_kind"]) == ("pending", None)
    assert (job["job_type"], job["priority"], job["stage"], job["status"]) == ("ingest", 4, "download", "queued")
    assert (job["shard"], job["collection"], job["deadline"]) == ("2a", "instagram", source_url().expires_at)
    assert (job["target_sizes"], job["output_format"]) == ([256, 512], "webp")


def test_an_image_that_arrives_dead_waits_without_a_job(connection: sa.Connection) -> None:
    assert see_one(connection, reference(source_url(lives=timedelta(hours=-2)), age=HOUR_AGO)) is Change.NEW
    assert jobs(connection) == []
    assert image(connection)["failure_kind"] == "source_url_expired"
    assert see_one(connection, reference(source_url("fresh"))) is Change.RESIGNED
    assert jobs(connection)[0]["job_type"] == JobType.INGEST


def test_fallback_urls_survive_the_way_into_the_catalog_and_back(connection: sa.Connection) -> None:
    urls = source_url("hd", rank=1080), source_url("sd", rank=150, lives=None)
    see(connection, reference(*urls))
    (known,) = known_images(connection, [reference().key]).values()
    assert known.candidates == urls


def test_what_the_catalog_does_not_know_is_not_among_the_known(connection: sa.Connection) -> None:
    assert known_images(connection, [reference().key]) == {}


# -- signed again --


def test_a_published_image_signed_again_notes_the_url_and_opens_no_job(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    publish(connection)
    fresh = source_url("again", lives=timedelta(days=9))
    assert see_one(connection, reference(fresh)) is Change.RESIGNED
    row = image(connection)
    assert (row["source_url"], row["url_expires_at"], row["observed_at"]) == (fresh.url, fresh.expires_at, NOW)
    assert row["processing_status"] == "completed"
    assert not open_jobs(connection)


def test_a_queued_job_follows_its_image(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, retry_in_seconds=900)])
    fresh = source_url("again", lives=timedelta(days=9))
    see(connection, reference(fresh))
    (job,) = jobs(connection)
    assert (job["source_url"], job["deadline"], job["retry_count"]) == (fresh.url, fresh.expires_at, 1)
    assert take(connection) == []


def test_failed_stays_failed_when_signed_again(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    fail(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT)
    assert see_one(connection, reference(source_url("again", lives=timedelta(days=9)))) is Change.RESIGNED
    assert see_one(connection, reference(source_url("better", rank=2000))) is Change.RESIGNED
    assert image(connection)["processing_status"] == "failed"
    assert not open_jobs(connection)


def test_a_waiting_image_reopens_on_a_fresh_url_and_not_on_the_same_one(connection: sa.Connection) -> None:
    see(connection, reference(age=2 * HOUR_AGO))
    fail(connection, Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
    assert see_one(connection, reference(age=HOUR_AGO)) is Change.UNCHANGED
    assert not open_jobs(connection)
    assert see_one(connection, reference(source_url("fresh", lives=timedelta(days=9)))) is Change.RESIGNED
    assert take_one(connection).last_failure is FailureKind.SOURCE_URL_EXPIRED
    assert see_one(connection, reference(source_url("fresh", lives=timedelta(days=9)))) is Change.UNCHANGED


def test_a_waiting_image_does_not_reopen_on_a_dead_url(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(days=-9)), age=HOUR_AGO))
    assert see_one(connection, reference(source_url("fresh", lives=timedelta(days=-3)))) is Change.RESIGNED
    assert not open_jobs(connection)


def test_a_waiting_image_reopens_although_it_was_compared_while_it_was_in_hand(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    job = take_one(connection)
    fresh = reference(source_url("fresh", lives=timedelta(days=9)))
    sighting = compare(fresh, known_images(connection, [fresh.key])[fresh.key], NOW)
    settle(connection, RUN, [outcome(job, Verdict.WAITING, failure=FailureKind.SOURCE_URL_EXPIRED)])
    assert record(connection, INSTAGRAM, [sighting]) == 1
    assert take_one(connection).urls[0] == fresh.candidates[0].url


# -- changed --


@pytest.mark.parametrize("verdict", [Verdict.PUBLISHED, Verdict.FAILED, Verdict.WAITING])
def test_another_picture_reopens_the_image_with_fresh_attempts(connection: sa.Connection, verdict: Verdict) -> None:
    see(connection, reference(age=HOUR_AGO))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING)])
    late = published(take_one(connection)) if verdict is Verdict.PUBLISHED else outcome(take_one(connection), verdict)
    settle(connection, RUN, [replace(late, verdict=verdict)])
    assert see_one(connection, reference(source_url(picture="B"))) is Change.CHANGED
    row = image(connection)
    assert (row["processing_status"], row["processing_attempts"], row["needs_update"]) == ("pending", 0, True)
    assert (row["failure_kind"], row["processing_error"], row["identity"]) == (None, None, "file:B")
    job = take_one(connection)
    wanted_type = JobType.UPDATE if verdict is Verdict.PUBLISHED else JobType.INGEST
    assert (job.stage, job.retry_count, job.last_failure, job.job_type) == (Stage.DOWNLOAD, 0, None, wanted_type)


def test_another_picture_sends_a_queued_job_back_to_the_start(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    settle(connection, RUN, [advanced(take_one(connection))])
    settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, Stage.PUBLISH, retry_in_seconds=900)])
    see(connection, reference(source_url(picture="B")))
    job = take_one(connection)
    assert (job.stage, job.retry_count, job.identity) == (Stage.DOWNLOAD, 0, "file:B")
    assert len(jobs(connection)) == 1


def test_another_picture_of_an_image_in_hand_takes_its_job_out_of_the_bulk_lane(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    connection.execute(sa.text(f"UPDATE cdn_image_jobs SET priority = {REENCODE_PRIORITY}"))
    take_one(connection)
    see(connection, reference(source_url(picture="B")))
    (job,) = jobs(connection)
    assert (job["status"], job["priority"]) == ("processing", INSTAGRAM.priorities["profile_avatar"])


def test_a_better_rank_of_a_published_picture_is_fetched(connection: sa.Connection) -> None:
    see(connection, reference(source_url("small", rank=150), age=HOUR_AGO))
    publish(connection)
    assert see_one(connection, reference(source_url("large", rank=1080))) is Change.CHANGED
    job = take_one(connection)
    assert (job.job_type, job.ranks, job.original_rank) == (JobType.UPDATE, (1080, 150), 150)


def test_an_older_observation_of_another_picture_changes_nothing(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    publish(connection)
    before = image(connection), jobs(connection)
    assert see_one(connection, reference(source_url(picture="B"), age=HOUR_AGO)) is Change.OUTDATED
    assert (image(connection), jobs(connection)) == before


def test_recording_again_changes_nothing(connection: sa.Connection) -> None:
    for urls in ([source_url()], [source_url("again", lives=timedelta(days=9))], [source_url(picture="B")]):
        sightings = see(connection, reference(*urls, age=-timedelta(days=len(urls[0].url))))
        before = jobs(connection)
        assert record(connection, INSTAGRAM, sightings) == 0
        assert [job["id"] for job in jobs(connection)] == [job["id"] for job in before]


# -- 404 --


def test_a_404_asks_for_one_fresh_url_and_knows_it_afterwards(connection: sa.Connection) -> None:
    see(connection, reference(age=HOUR_AGO))
    fail(connection, Verdict.WAITING, FailureKind.SOURCE_URL_404)
    see(connection, reference(source_url("fresh", lives=timedelta(days=9))))
    assert take_one(connection).last_failure is FailureKind.SOURCE_URL_404


# -- concurrency --


def test_one_open_job_per_image_whatever_writes_at_once(catalog: sa.Engine) -> None:
    seen = [reference(image=str(number)) for number in range(40)]

    def intake(shift: int) -> int:
        order = seen[shift:] + seen[:shift]
        return transaction(
            catalog, lambda connection: record(connection, INSTAGRAM, [compare(each, None, NOW) for each in order])
        )

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(intake, (0, 10, 20, 30)))
    with session(catalog) as connection:
        assert sum(opened) == len(jobs(connection)) == 40
        with pytest.raises(sa.exc.IntegrityError, match="uq_cdn_image_jobs_open"):
            connection.execute(
                sa.text("""
                    INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url)
                    SELECT asset_id, collection, shard, job_type, source_url FROM cdn_image_jobs LIMIT 1
                """)
            )


def test_a_deadlock_is_survived(catalog: sa.Engine) -> None:
    """Two transactions that take the same two images in opposite order: Postgres ends one, which then runs again."""
    with session(catalog) as connection:
        see(connection, reference(image="1", age=HOUR_AGO), reference(image="2", age=HOUR_AGO))
        connection.execute(sa.text(f"ALTER DATABASE {catalog.url.database} SET deadlock_timeout = '20ms'"))
    catalog.dispose()
    both_have_one = threading.Barrier(2)
    attempts = {"1": 0, "2": 0}

    def sign_again(first: str, second: str) -> None:
        def work(connection: sa.Connection) -> None:
            attempts[first] += 1
            see(connection, reference(source_url(first, lives=timedelta(days=9)), image=first))
            if attempts[first] == 1:
                both_have_one.wait(10)
            see(connection, reference(source_url(first, lives=timedelta(days=9)), image=second))

        transaction(catalog, work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(sign_again, "1", "2"), pool.submit(sign_again, "2", "1")]:
            done.result()
    assert sorted(attempts.values()) == [1, 2]


def test_intake_claims_and_outcomes_at_once_leave_nothing_stuck(catalog: sa.Engine) -> None:
    """Every image ends published with the picture that was seen last, although it changed under the workers' hands."""
    refuse_illegal_transitions(catalog)
    images, rounds = 12, 12
    finished = threading.Event()

    def intake(step: int) -> None:
        url = source_url(str(step), picture=str(step // 2), lives=timedelta(days=1, minutes=step))
        seen = [
            reference(url, image=str(number), age=timedelta(days=1) - timedelta(minutes=step))
            for number in range(images)
        ]
        transaction(catalog, lambda connection: see(connection, *(seen if step % 2 else reversed(seen))))

    def mirror(run: Run) -> int:
        done = 0
        while True:
            last_look = finished.is_set()
            claimed = transaction(
                catalog, lambda connection: claim(connection, run, EVERYTHING, ["00"], batch=5, total=5)
            )
            outcomes = [published(job, job.identity, job.identity) for job in claimed]
            done += len(transaction(catalog, partial(settle, run=run, outcomes=outcomes)))
            if last_look and not claimed:
                return done

    with ThreadPoolExecutor(3) as pool:
        mirrors = [pool.submit(mirror, Run(f"run-{number}", "here")) for number in range(2)]
        try:
            for step in range(rounds):
                intake(step)
        finally:
            finished.set()
        assert sum(each.result() for each in mirrors) >= images
    with session(catalog) as connection:
        assert not open_jobs(connection)
        rows = connection.execute(
            sa.text("SELECT processing_status, identity, original_identity FROM cdn_image_assets")
        )
        assert set(rows.all()) == {("completed", f"file:{(rounds - 1) // 2}", f"file:{(rounds - 1) // 2}")}


@pytest.mark.parametrize("queued", [True, False])
def test_locked_images_wait_for_nobody_and_nobody_overwrites_them(catalog: sa.Engine, queued: bool) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=HOUR_AGO))
        if not queued:
            publish(connection)
    with catalog.connect() as one, catalog.connect() as other:
        lock_images(one, [reference().key])
        other.execute(sa.text("SET lock_timeout = '50ms'"))
        assert claim(other, RUN, EVERYTHING, ["00"], batch=1, total=1) == []
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            see(other, reference(source_url(picture="B")))


def test_locking_nothing_is_no_work(connection: sa.Connection) -> None:
    assert lock_images(connection, []) == {}
    assert record(connection, INSTAGRAM, []) == 0


@pytest.mark.parametrize("ended_by", ["settled", "released"])
def test_a_sighting_between_claim_and_end_is_never_lost(connection: sa.Connection, ended_by: str) -> None:
    endings: dict[str, Callable[[Any], Any]] = {
        "settled": lambda job: settle(connection, RUN, [published(job)]),
        "released": lambda job: release_dead_leases(connection, ["00"]),
    }
    see(connection, reference(age=HOUR_AGO))
    job = take_one(connection)
    see(connection, reference(source_url(picture="B")))
    endings[ended_by](job)
    due_now(connection)
    publish(connection, "B", "B")
    assert (image(connection)["original_identity"], len(open_jobs(connection))) == ("file:B", 0)


# -- versions --


def version(connection: sa.Connection) -> str:
    (known,) = known_images(connection, [reference().key]).values()
    return known.version


WRITINGS: dict[str, Callable[[sa.Connection], object]] = {
    "signed again": lambda connection: see(connection, reference(source_url("b", lives=timedelta(days=9)))),
    "another picture": lambda connection: see(connection, reference(source_url(picture="B"))),
    "claimed": take_one,
    "published": publish,
    "sighted": lambda connection: mark_sighted(connection, [reference().key]),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_an_image_has_another_version_once_it_was_written(catalog: sa.Engine, writing: str) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=HOUR_AGO))
        before = version(connection)
        WRITINGS[writing](connection)
        assert version(connection) != before
        assert lock_images(connection, [reference().key]) == {reference().key: version(connection)}


def test_a_lock_is_no_writing_and_tells_the_version_of_what_is_locked(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=HOUR_AGO))
        before = version(connection)
    unknown = reference(image="unknown").key
    for _ in range(2):
        with catalog.begin() as connection:
            assert lock_images(connection, [reference().key, unknown]) == {reference().key: before}
    with session(catalog) as connection:
        assert version(connection) == before


def test_a_url_that_is_signed_again_leaves_every_index_alone(catalog: sa.Engine) -> None:
    """A night writes every row: with an index of what it writes, each row would be written into all indexes."""
    with session(catalog) as connection:
        see(connection, reference(age=HOUR_AGO))
        publish(connection)
    updated = sa.text("""
        SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'cdn_image_assets'""")
    with catalog.begin() as connection:
        rows_before, only_rows_before = connection.execute(updated).one()
        assert see_one(connection, reference(source_url("again", lives=timedelta(days=9)))) is Change.RESIGNED
        mark_sighted(connection, [reference().key])
        rows, only_rows = connection.execute(updated).one()
    assert (rows - rows_before, only_rows - only_rows_before) == (2, 2)
