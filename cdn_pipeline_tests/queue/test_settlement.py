import dataclasses
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.leases import Run, release_dead_leases
from cdn_pipeline.queue.outcomes import EFFECTS, StoredOriginal, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    RUN,
    advanced,
    due_now,
    image,
    jobs,
    open_jobs,
    original_of,
    outcome,
    paths,
    publish,
    published,
    reference,
    rendition,
    renditions,
    see,
    session,
    source_url,
    take,
    take_one,
    visible,
)

OTHER = Run("run-2", "there:2")
PUBLISH_ONLY = Selection(INSTAGRAM, frozenset({Stage.PUBLISH}))


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_writes_its_effect_and_ends_the_lease(catalog: sa.Engine, verdict: Verdict) -> None:
    with catalog.begin() as connection:
        see(connection, reference())
        job = take_one(connection)
        assert settle(connection, RUN, [outcome(job, verdict)]) == {job.job_id}
        (row,) = jobs(connection)
        assert (row["status"], image(connection)["processing_status"]) == EFFECTS[verdict]
        assert row["lease_until"] is None
        assert (row["completed_at"] is not None) == (row["status"] in ("completed", "failed"))


def test_no_outcomes_are_no_work(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        assert settle(connection, RUN, []) == set()


def test_all_sizes_become_visible_together(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        see(connection, reference())
    with catalog.begin() as connection:
        job = take_one(connection)
    with catalog.connect() as writer, catalog.connect() as reader:
        settle(writer, RUN, [published(job)])
        assert visible(reader) == (None, None)
        reader.rollback()
        writer.commit()
        assert visible(reader) == paths("x")


def test_a_new_picture_takes_the_place_of_the_old_one_which_is_kept(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(source_url(picture="A"), age=timedelta(hours=1)))
        publish(connection, "old", "A")
        see(connection, reference(source_url(picture="B")))
        assert visible(connection) == paths("old")
        publish(connection, "new", "B")
        assert visible(connection) == paths("new")
        states = {path: state for _, path, state in renditions(connection)}
        assert states == dict.fromkeys(paths("old"), "superseded") | dict.fromkeys(paths("new"), "current")
        assert connection.scalar(sa.text("SELECT count(superseded_at) FROM cdn_image_renditions")) == 2


def test_a_size_whose_bytes_stay_the_same_is_not_replaced(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        publish(connection, "x")
        see(connection, reference(source_url(picture="B")))
        job = take_one(connection)
        mixed = (rendition("256", "x"), rendition("512", "y"))
        settle(connection, RUN, [dataclasses.replace(published(job), renditions=mixed)])
        assert visible(connection) == (paths("x")[0], paths("y")[1])


def test_what_is_made_again_byte_for_byte_stays_visible_at_every_step(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        publish(connection, "x")
        see(connection, reference(source_url(picture="B")))
        settle(connection, RUN, [advanced(take_one(connection), "x")])
        assert visible(connection) == paths("x")
        job = take_one(connection)
        assert job.stage is Stage.PUBLISH
        settle(connection, RUN, [outcome(job, Verdict.PUBLISHED, Stage.PUBLISH)])
        assert visible(connection) == paths("x")
        assert {state for *_, state in renditions(connection)} == {"current"}


def test_a_superseded_rendition_that_is_made_again_becomes_visible_again(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        for number, picture in enumerate(("A", "B", "A")):
            see(connection, reference(source_url(picture=picture), age=timedelta(hours=5 - number)))
            publish(connection, picture, picture)
        assert visible(connection) == paths("A")
        assert connection.scalar(sa.text("SELECT count(superseded_at) FROM cdn_image_renditions")) == 2


def test_advanced_renditions_wait_invisibly_until_a_later_run_publishes_them(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        settle(connection, RUN, [advanced(take_one(connection))])
        assert visible(connection) == (None, None)
        job = take_one(connection, OTHER, PUBLISH_ONLY)
        assert {stored.path for stored in job.stored} == set(paths("x"))
        settle(connection, OTHER, [outcome(job, Verdict.PUBLISHED, Stage.PUBLISH)])
        assert visible(connection) == paths("x")
        assert image(connection)["processing_status"] == "completed"


def test_leftovers_of_an_unfinished_attempt_never_become_current(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        settle(connection, RUN, [advanced(take_one(connection), "left over", "A")])
        see(connection, reference(source_url(picture="B")))
        publish(connection, "new", "B")
        assert visible(connection) == paths("new")
        assert {state for _, path, state in renditions(connection) if path in paths("left over")} == {"superseded"}


@pytest.mark.parametrize("verdict", [Verdict.UNCHANGED, Verdict.WAITING, Verdict.FAILED])
def test_a_job_that_ends_without_publishing_leaves_nothing_stored_behind(catalog: sa.Engine, verdict: Verdict) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        settle(connection, RUN, [advanced(take_one(connection), "left over", "A")])
        see(connection, reference(source_url(picture="B")))
        settle(connection, RUN, [outcome(take_one(connection), verdict)])
        assert {state for *_, state in renditions(connection)} == {"superseded"}


def test_unchanged_touches_no_rendition_row(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        publish(connection)
        rows = sa.text("SELECT ctid::text, xmin::text, r.* FROM cdn_image_renditions r ORDER BY id")
        before = connection.execute(rows).all()
        see(connection, reference(source_url(picture="B")))
        job = take_one(connection)
        settle(connection, RUN, [outcome(job, Verdict.UNCHANGED, original=original_of(job))])
        assert connection.execute(rows).all() == before
        assert image(connection)["original_identity"] == "file:B"
        assert image(connection)["processing_status"] == "completed"


def test_a_failed_update_keeps_serving_the_last_good_rendition(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        publish(connection)
        see(connection, reference(source_url(picture="B")))
        settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])
        assert visible(connection) == paths("x")
        assert image(connection)["failure_kind"] == "image_corrupt"


# -- leases --


def test_the_outcome_of_a_lost_lease_is_dropped_and_changes_nothing(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        job = take_one(connection)
        connection.execute(sa.text("UPDATE cdn_image_jobs SET lease_until = now() - interval '1 second'"))
        release_dead_leases(connection, ["00"])
        for holder in (None, OTHER):
            if holder:
                take_one(connection, holder)
            before = image(connection), jobs(connection), renditions(connection)
            assert settle(connection, RUN, [published(job)]) == set()
            assert (image(connection), jobs(connection), renditions(connection)) == before


def test_an_outcome_is_written_once(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        job = publish(connection)
        before = image(connection), jobs(connection)
        assert settle(connection, RUN, [outcome(job, Verdict.FAILED)]) == set()
        assert (image(connection), jobs(connection)) == before


def test_two_outcomes_of_one_job_in_one_batch_count_as_the_later(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        job = take_one(connection)
        assert settle(connection, RUN, [published(job, "x"), published(job, "y")]) == {job.job_id}
        assert visible(connection) == paths("y")


def test_of_a_batch_only_the_held_are_written(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, *(reference(image=str(number)) for number in range(3)))
        mine = take(connection)
        lost = mine[1]
        connection.execute(sa.text("UPDATE cdn_image_jobs SET run_id = 'other' WHERE id = :id"), {"id": lost.job_id})
        held = settle(connection, RUN, [published(job) for job in mine])
        assert held == {mine[0].job_id, mine[2].job_id}
        assert len(renditions(connection)) == 2  # of the same paths
        assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_renditions")) == 4


# -- what changed while the image was in hand --


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PUBLISHED])
def test_a_new_picture_discovered_in_hand_sends_the_job_back_to_the_start(catalog: sa.Engine, verdict: Verdict) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        settle(connection, RUN, [advanced(take_one(connection))])
        job = take_one(connection)
        fresh = source_url(picture="B", lives=timedelta(days=1))
        see(connection, reference(fresh))
        late = outcome(job, verdict, Stage.PUBLISH, failure=FailureKind.SOURCE_URL_404, retry_in_seconds=3600)
        settle(connection, RUN, [late])
        again = take_one(connection)
        assert (again.stage, again.identity, again.urls[0]) == (Stage.DOWNLOAD, "file:B", fresh.url)
        assert (again.deadline, again.retry_count, again.last_failure) == (fresh.expires_at, 0, None)


def test_a_picture_that_was_overtaken_in_hand_is_published_all_the_same(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        job = take_one(connection)
        see(connection, reference(source_url(picture="B")))
        settle(connection, RUN, [published(job, "older", "A")])
        assert visible(connection) == paths("older")
        assert image(connection)["processing_status"] == "pending"
        assert image(connection)["needs_update"]
        publish(connection, "newer", "B")
        assert visible(connection) == paths("newer")
        assert image(connection)["processing_status"] == "completed"
        assert not image(connection)["needs_update"]
        assert len(jobs(connection)) == 1


@pytest.mark.parametrize(
    "verdict", [Verdict.PUBLISHED, Verdict.UNCHANGED, Verdict.ADVANCED, Verdict.RETRYING, Verdict.RELEASED]
)
def test_a_better_rank_discovered_in_hand_is_fetched_afterwards(catalog: sa.Engine, verdict: Verdict) -> None:
    with session(catalog) as connection:
        see(connection, reference(source_url("small", rank=150), age=timedelta(hours=1)))
        job = take_one(connection)
        see(connection, reference(source_url("large", rank=1080)))
        settle(connection, RUN, [dataclasses.replace(published(job), verdict=verdict)])
        again = take_one(connection)
        assert (again.stage, again.ranks[0]) == (Stage.DOWNLOAD, 1080)
        settle(connection, RUN, [published(again, "large", "large")])
        assert not open_jobs(connection)


def test_a_url_signed_again_in_hand_opens_nothing_when_the_image_is_published(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        job = take_one(connection)
        see(connection, reference(source_url("again", lives=timedelta(days=9))))
        settle(connection, RUN, [published(job)])
        assert not open_jobs(connection)


def test_a_fresh_url_that_came_in_hand_is_tried_instead_of_waited_for(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        job = take_one(connection)
        fresh = source_url("fresh", lives=timedelta(days=9))
        see(connection, reference(fresh))
        settle(connection, RUN, [outcome(job, Verdict.WAITING, failure=FailureKind.SOURCE_URL_404)])
        again = take_one(connection)
        assert again.urls[0] == fresh.url
        assert again.last_failure is FailureKind.SOURCE_URL_404
        settle(connection, RUN, [outcome(again, Verdict.WAITING, failure=FailureKind.SOURCE_URL_EXPIRED)])
        assert not open_jobs(connection)


def test_a_retry_takes_the_url_and_deadline_that_came_in_hand(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        job = take_one(connection)
        fresh = source_url("fresh", lives=timedelta(days=9))
        see(connection, reference(fresh))
        settle(connection, RUN, [outcome(job, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
        (row,) = jobs(connection)
        assert (row["source_url"], row["deadline"], row["retry_count"]) == (fresh.url, fresh.expires_at, 1)


# -- what is kept --


def test_a_released_image_is_as_if_it_had_not_been_claimed(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        first = outcome(take_one(connection), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, detail="HTTP 500")
        settle(connection, RUN, [dataclasses.replace(first, total_ms=7)])
        due_now(connection)
        before, (job_before,) = image(connection), jobs(connection)
        settle(connection, RUN, [outcome(take_one(connection), Verdict.RELEASED)])
        after, (job_after,) = image(connection), jobs(connection)
        touched = {"updated_at", "processing_started_at"}
        assert _differences(before, after) <= touched
        touched = {"busy", "updated_at", "started_at", "next_attempt_at", "run_id"}
        assert _differences(job_before, job_after) <= touched
        assert job_after["run_id"] is None


def _differences(one: sa.RowMapping, other: sa.RowMapping) -> set[str]:
    return {str(name) for name in one if one[name] != other[name]}


def test_a_retry_counts_and_a_success_resets_the_attempts(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        for attempt in (1, 2):
            settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
            assert jobs(connection)[0]["retry_count"] == image(connection)["processing_attempts"] == attempt
        publish(connection)
        assert image(connection)["processing_attempts"] == 0
        assert image(connection)["failure_kind"] is None


def test_a_retry_is_not_due_before_its_time(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, retry_in_seconds=60)])
        assert take(connection) == []
        due_now(connection)
        assert take_one(connection).retry_count == 1


def test_a_404_is_not_forgotten_over_a_passing_failure(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SOURCE_URL_404)])
        see(connection, reference(source_url("fresh", lives=timedelta(days=9))))
        settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
        assert take_one(connection).last_failure is FailureKind.SOURCE_URL_404


def test_an_original_is_remembered_even_if_the_attempt_failed_afterwards(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        job = take_one(connection)
        failed = outcome(job, Verdict.RETRYING, Stage.ENCODE, failure=FailureKind.WORKER_DIED)
        settle(connection, RUN, [dataclasses.replace(failed, original=original_of(job))])
        again = take_one(connection)
        assert (again.stage, again.original_sha256, again.original_identity) == (Stage.ENCODE, "A", "file:A")


def test_the_numbers_of_earlier_stages_stay_with_the_job(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        first = advanced(take_one(connection))
        settle(connection, RUN, [dataclasses.replace(first, download_ms=11, bytes_in=1000, transcode_ms=22)])
        started = jobs(connection)[0]["first_started_at"]
        settle(connection, RUN, [outcome(take_one(connection), Verdict.PUBLISHED, Stage.PUBLISH, upload_ms=33)])
        (row,) = jobs(connection)
        numbers = row["download_ms"], row["transcode_ms"], row["upload_ms"], row["bytes_in"]
        assert numbers == (11, 22, 33, 1000)
        assert (row["first_started_at"], row["run_id"]) == (started, RUN.run_id)


def test_words_from_outside_that_postgres_refuses_do_not_spoil_the_batch(catalog: sa.Engine) -> None:
    nasty = "\x00\udcff" + "é" * 2000
    original = StoredOriginal("A", "file:A", 1000, 1, "jpeg", content_type=nasty, etag=nasty, last_modified=nasty)
    with session(catalog) as connection:
        see(connection, reference())
        job = take_one(connection)
        settle(connection, RUN, [outcome(job, Verdict.FAILED, detail=nasty, original=original)])
        assert image(connection)["processing_error"].startswith("?é")
        assert image(connection)["source_etag"] is None  # cut, it would never match


def test_jobs_at_a_later_stage_are_left_to_runs_that_may_do_it(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        assert take(connection, selection=PUBLISH_ONLY) == []
        settle(connection, RUN, [advanced(take_one(connection))])
        download_only = Selection(INSTAGRAM, frozenset({Stage.DOWNLOAD, Stage.ENCODE}))
        assert take(connection, selection=download_only) == []
        assert len(take(connection, selection=EVERYTHING)) == 1


def test_a_job_remembers_when_it_was_in_hand_attempt_by_attempt(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        settle(connection, RUN, [outcome(take_one(connection), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
        due_now(connection)
        settle(connection, RUN, [outcome(take_one(connection), Verdict.PUBLISHED)])
        (job,) = jobs(connection)
        first, second = job["busy"]
        assert job["first_started_at"] <= first.lower < first.upper <= second.lower == job["started_at"]
        assert abs(second.upper - job["completed_at"]) < timedelta(seconds=1)


def test_a_picture_that_is_shown_again_is_not_replaced_by_the_one_that_was_in_between(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(source_url(picture="A"), age=timedelta(hours=3)))
        settle(connection, RUN, [published(take_one(connection), "a", sha256="A")])
        before = current_paths(connection)
        see(connection, reference(source_url(picture="B"), age=timedelta(hours=2)))
        between = take_one(connection)
        see(connection, reference(source_url("again", picture="A"), age=timedelta(hours=1)))
        settle(connection, RUN, [published(between, "b", sha256="B")])
        assert current_paths(connection) == before
        assert (image(connection)["original_sha256"], image(connection)["original_identity"]) == ("A", "file:A")
        (job,) = open_jobs(connection)
        assert (job["status"], job["stage"]) == ("queued", Stage.DOWNLOAD)
        settle(connection, RUN, [outcome(take_one(connection), Verdict.UNCHANGED)])
        assert current_paths(connection) == before


def test_a_deleted_picture_is_gone_also_if_its_fresh_urls_have_a_better_rank(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(source_url("small", rank=150), age=timedelta(hours=3)))
        settle(connection, RUN, [published(take_one(connection))])
        see(connection, reference(source_url("first", rank=1080), age=timedelta(hours=2)))
        job = take_one(connection)
        settle(connection, RUN, [outcome(job, Verdict.WAITING, failure=FailureKind.SOURCE_URL_404)])
        fresh = source_url("fresh", rank=1080, lives=timedelta(days=4))
        see(connection, reference(fresh, age=timedelta(hours=1)))
        assert take_one(connection).urls[0] == fresh.url
        assert image(connection)["failure_kind"] == FailureKind.SOURCE_URL_404


def test_an_outcome_from_before_a_nap_does_not_end_a_job_that_was_claimed_again(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference(source_url("small", rank=150), age=timedelta(hours=2)))
        slept = published(take_one(connection))
        connection.execute(sa.text("UPDATE cdn_image_jobs SET lease_until = now() - interval '1 second'"))
        release_dead_leases(connection, ["00"])
        see(connection, reference(source_url("large", rank=1080), age=timedelta(hours=1)))
        take_one(connection)
        settle(connection, RUN, [slept])
        assert len(open_jobs(connection)) == 1


def current_paths(connection: sa.Connection) -> set[str]:
    return set(connection.scalars(sa.text("SELECT path FROM cdn_image_renditions WHERE state = 'current'")))
