"""Jobs that roll a recipe out: how they open, what they make, and what becomes of them when the picture changes."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, INSTAGRAM, REENCODE_PRIORITY
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS
from cdn_pipeline.queue.due import Selection, count_due
from cdn_pipeline.queue.leases import release_dead_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.reopen import Rollout, active_rollouts, open_jobs_again, open_rollout_jobs
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    RUN,
    image,
    jobs,
    open_jobs,
    original_of,
    outcome,
    paths,
    publish,
    published,
    reference,
    rolled_out,
    see,
    source_url,
    take,
    take_one,
    visible,
    visible_avif,
)

NOTHING = (None, None)
AVATAR_PRIORITY = INSTAGRAM.priorities["profile_avatar"]


def roll_out(connection: sa.Connection, recipe: str = "avif_thumbnails", version: int = 1, paused: bool = False) -> int:
    """Starts or pauses a rollout in the catalog and opens what it lacks."""
    connection.execute(
        sa.text("""
            INSERT INTO cdn_rollouts (collection, recipe, recipe_version, paused_at)
            VALUES ('instagram', :recipe, :version, CASE WHEN :paused THEN now() END)
            ON CONFLICT (collection, recipe) DO UPDATE
            SET recipe_version = excluded.recipe_version, paused_at = excluded.paused_at
        """),
        {"recipe": recipe, "version": version, "paused": paused},
    )
    return open_rollout_jobs(connection, INSTAGRAM, ["00"])


def publish_and_roll_out(connection: sa.Connection) -> None:
    """An image with its WebP published, and a queued job for AVIF."""
    see(connection, reference(age=timedelta(hours=1)))
    publish(connection)
    assert roll_out(connection) == 1


def hold(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = now() WHERE status = 'queued'"))


def assert_starts_anew(connection: sa.Connection, *, priority: int = AVATAR_PRIORITY) -> None:
    """The open job downloads for the collection's own recipe."""
    (job,) = open_jobs(connection)
    assert (job["stage"], job["rollout"], job["priority"], job["held_at"]) == ("download", None, priority, None)
    claimed = take_one(connection)
    assert (claimed.recipe, claimed.stage) == (WEBP_THUMBNAILS, Stage.DOWNLOAD)
    (job,) = open_jobs(connection)
    assert (job["output_format"], job["target_sizes"]) == ("webp", [256, 512])


# -- opening --


def test_a_published_image_gets_a_job_that_encodes_from_its_original(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    (row,) = open_jobs(connection)
    assert (row["rollout"], row["output_format"], row["target_sizes"]) == ("avif_thumbnails", "avif", [256, 512])
    job = take_one(connection)
    assert (job.recipe, job.stage, job.job_type) == (AVIF_THUMBNAILS, Stage.ENCODE, JobType.UPDATE)
    assert (job.priority, job.force, job.up_to_date) == (REENCODE_PRIORITY, False, False)


def test_what_it_makes_is_visible_beside_webp(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(connection, RUN, [rolled_out(take_one(connection))])
    assert visible(connection) == paths("x")
    assert visible_avif(connection) == paths("x", AVIF_THUMBNAILS)
    assert image(connection)["processing_status"] == "completed"
    assert roll_out(connection) == 0


@pytest.mark.parametrize("left_over", [paths("x", AVIF_THUMBNAILS), ()])
def test_up_to_date_is_said_of_the_jobs_own_recipe(connection: sa.Connection, left_over: Any) -> None:
    publish_and_roll_out(connection)
    if left_over:
        settle(connection, RUN, [rolled_out(take_one(connection))])
        open_jobs_again(
            connection, INSTAGRAM, ["00"], from_originals=True, force=True, owner_ids=None, limit=None
        )  # of the collection's own recipe
        connection.execute(sa.text("UPDATE cdn_image_jobs SET rollout = 'avif_thumbnails' WHERE status = 'queued'"))
    job = take_one(connection)
    assert job.recipe == AVIF_THUMBNAILS
    assert job.up_to_date is bool(left_over)
    assert job.current_paths == {*paths("x"), *left_over}


def test_without_rollouts_nothing_opens(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert open_rollout_jobs(connection, INSTAGRAM, ["00"]) == 0


def test_a_paused_rollout_opens_nothing(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert roll_out(connection, paused=True) == 0


def test_only_completed_images_with_an_original_of_their_picture_get_jobs(connection: sa.Connection) -> None:
    see(connection, reference(image="queued"))
    assert roll_out(connection) == 0
    failed = outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)
    settle(connection, RUN, [failed])
    see(connection, reference(source_url(lives=-timedelta(days=1)), image="arrived dead"))
    assert roll_out(connection) == 0


def test_shards_owners_and_collection_are_respected(connection: sa.Connection) -> None:
    some = [
        reference(image=f"{shard}{owner}", shard=shard, owner=owner) for shard in ("00", "01") for owner in ("a", "b")
    ]
    see(connection, *some)
    settle(connection, RUN, [published(job) for job in take(connection)])
    connection.execute(
        sa.text("INSERT INTO cdn_rollouts (collection, recipe, recipe_version) VALUES ('instagram', :recipe, 1)"),
        {"recipe": "avif_thumbnails"},
    )
    other = dataclasses.replace(INSTAGRAM, name="vehicles")
    assert open_rollout_jobs(connection, other, ["00", "01"]) == 0
    assert open_rollout_jobs(connection, INSTAGRAM, ["01"], owner_ids=["b"]) == 1
    assert open_rollout_jobs(connection, INSTAGRAM, ["00"]) == 2
    assert {(job.shard, job.owner_id) for job in take(connection)} == {("00", "a"), ("00", "b"), ("01", "b")}


def test_of_two_rollouts_an_image_gets_one_job_at_a_time(connection: sa.Connection) -> None:
    jpeg = dataclasses.replace(AVIF_THUMBNAILS, name="jpeg_thumbnails", format="jpeg")
    both = dataclasses.replace(INSTAGRAM, rollouts=(AVIF_THUMBNAILS, jpeg))
    publish_and_roll_out(connection)
    roll_out(connection, "jpeg_thumbnails")
    assert open_rollout_jobs(connection, both, ["00"]) == 0
    settle(connection, RUN, [rolled_out(take_one(connection, selection=Selection(both, frozenset(Stage))))])
    assert open_rollout_jobs(connection, both, ["00"]) == 1
    assert take_one(connection, selection=Selection(both, frozenset(Stage))).recipe == jpeg


# -- versions --


PRESENT = AVIF_THUMBNAILS.version
NEXT = PRESENT + 1
NEWER = dataclasses.replace(INSTAGRAM, rollouts=(dataclasses.replace(AVIF_THUMBNAILS, version=NEXT),))


def test_a_new_version_is_not_rolled_out_before_an_operator_says_so(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(connection, RUN, [rolled_out(take_one(connection))])
    assert open_rollout_jobs(connection, NEWER, ["00"]) == 0
    roll_out(connection, version=NEXT)
    assert open_rollout_jobs(connection, NEWER, ["00"]) == 1


def test_code_that_is_older_than_the_rollout_makes_what_it_can_and_does_so_once(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert roll_out(connection, version=NEXT) == 1
    settle(connection, RUN, [rolled_out(take_one(connection))])
    assert roll_out(connection, version=NEXT) == 0
    assert [rollout.version for rollout in active_rollouts(connection, INSTAGRAM)] == [PRESENT]


def test_the_collections_own_recipe_is_rolled_out_as_a_job_without_a_name(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert roll_out(connection, WEBP_THUMBNAILS.name) == 0
    recipe = dataclasses.replace(WEBP_THUMBNAILS, version=WEBP_THUMBNAILS.version + 1)
    newer = dataclasses.replace(INSTAGRAM, recipe=recipe)
    assert open_rollout_jobs(connection, newer, ["00"]) == 0
    roll_out(connection, recipe.name, version=recipe.version)
    assert open_rollout_jobs(connection, newer, ["00"]) == 1
    (job,) = open_jobs(connection)
    assert (job["rollout"], job["stage"], job["priority"]) == (None, "encode", REENCODE_PRIORITY)


# -- code that does not know the recipe --


def test_a_recipe_that_this_code_does_not_have_is_left_to_code_that_has_it(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    without = Selection(dataclasses.replace(INSTAGRAM, rollouts=()), frozenset(Stage))
    assert count_due(connection, without, ["00"]) == 0
    assert take(connection, selection=without) == []
    assert open_rollout_jobs(connection, without.collection, ["00"]) == 0
    assert count_due(connection, EVERYTHING, ["00"]) == 1


def test_only_recipes_that_this_code_has_are_active(connection: sa.Connection) -> None:
    roll_out(connection, "of_the_future")
    assert active_rollouts(connection, INSTAGRAM) == []
    roll_out(connection)
    (rollout,) = active_rollouts(connection, INSTAGRAM)
    assert (rollout.recipe, rollout.version) == (AVIF_THUMBNAILS, 1)
    assert isinstance(rollout, Rollout)


# -- the picture changes --


@pytest.mark.parametrize(
    "meanwhile", [source_url(picture="B"), source_url("better", rank=2000)], ids=["another picture", "a better rank"]
)
@pytest.mark.parametrize("held", [False, True])
def test_a_queued_job_of_a_changed_picture_downloads_it_at_the_images_priority(
    connection: sa.Connection, meanwhile: Any, held: bool
) -> None:
    publish_and_roll_out(connection)
    if held:
        hold(connection)
    see(connection, reference(meanwhile))
    (job,) = open_jobs(connection)
    assert (job["output_format"], job["target_sizes"]) == ("webp", [256, 512])
    assert_starts_anew(connection)


def test_a_url_signed_again_leaves_the_rollout_alone(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    hold(connection)
    fresh = source_url("again", lives=timedelta(days=9))
    see(connection, reference(fresh))
    (job,) = open_jobs(connection)
    assert (job["rollout"], job["stage"], job["source_url"]) == ("avif_thumbnails", "encode", fresh.url)
    assert job["held_at"] is not None


def test_a_held_job_of_another_kind_stays_held_when_its_picture_changes(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    hold(connection)
    see(connection, reference(source_url(picture="B")))
    assert take(connection) == []


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize(
    "meanwhile", [source_url(picture="B"), source_url("better", rank=2000)], ids=["another picture", "a better rank"]
)
def test_a_job_in_hand_whose_picture_changes_is_downloaded_next_at_the_images_priority(
    connection: sa.Connection, verdict: Verdict, meanwhile: Any
) -> None:
    publish_and_roll_out(connection)
    job = take_one(connection)
    see(connection, reference(meanwhile))
    settle(connection, RUN, [dataclasses.replace(rolled_out(job), verdict=verdict)])
    assert_starts_anew(connection)


def test_a_picture_that_changed_while_its_run_died_is_downloaded(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    take_one(connection)
    see(connection, reference(source_url(picture="B")))
    release_dead_leases(connection, ["00"])
    assert_starts_anew(connection)


def test_a_rollout_whose_run_died_goes_on(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    take_one(connection)
    release_dead_leases(connection, ["00"])
    job = take_one(connection)
    assert (job.recipe, job.stage, job.priority) == (AVIF_THUMBNAILS, Stage.ENCODE, REENCODE_PRIORITY)


def test_a_lost_original_is_downloaded_before_other_re_encoding(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    lost = outcome(take_one(connection), Verdict.RETRYING, Stage.DOWNLOAD, failure=FailureKind.ORIGINAL_MISSING)
    settle(connection, RUN, [lost])
    assert_starts_anew(connection, priority=BACKFILL_PRIORITY)


def test_a_users_request_keeps_its_priority_whatever_happens(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    connection.execute(sa.text("UPDATE cdn_image_jobs SET priority = 1"))
    see(connection, reference(source_url(picture="B")))
    job = take_one(connection)
    settle(connection, RUN, [outcome(job, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
    take_one(connection)
    release_dead_leases(connection, ["00"])
    assert [job["priority"] for job in open_jobs(connection)] == [1]


def test_a_new_picture_takes_the_old_one_out_of_every_format(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(connection, RUN, [rolled_out(take_one(connection))])
    see(connection, reference(source_url(picture="B")))
    job = take_one(connection)
    assert visible_avif(connection) == paths("x", AVIF_THUMBNAILS)  # a failed update would keep both
    settle(connection, RUN, [published(job, "new", sha256="B")])
    assert visible(connection) == paths("new")
    assert visible_avif(connection) == NOTHING
    assert roll_out(connection) == 1
    settle(connection, RUN, [rolled_out(take_one(connection), "new", sha256="B")])
    assert visible_avif(connection) == paths("new", AVIF_THUMBNAILS)


def test_a_failed_update_keeps_every_format(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(connection, RUN, [rolled_out(take_one(connection))])
    see(connection, reference(source_url(picture="B")))
    job = take_one(connection)
    corrupt = outcome(job, Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, original=original_of(job, "B"))
    settle(connection, RUN, [corrupt])
    assert (visible(connection), visible_avif(connection)) == (paths("x"), paths("x", AVIF_THUMBNAILS))


def test_the_same_recipe_again_leaves_other_formats_alone(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(connection, RUN, [rolled_out(take_one(connection))])
    open_jobs_again(connection, INSTAGRAM, ["00"], from_originals=True, force=True, owner_ids=None, limit=None)
    settle(connection, RUN, [published(take_one(connection), "again")])
    assert (visible(connection), visible_avif(connection)) == (paths("again"), paths("x", AVIF_THUMBNAILS))


# -- failures --


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.WAITING])
def test_a_rollout_that_fails_leaves_the_image_completed_and_its_webp_visible(
    connection: sa.Connection, verdict: Verdict
) -> None:
    see(connection, reference())
    publish(connection)
    before = image(connection)
    roll_out(connection)
    failed = outcome(take_one(connection), verdict, Stage.ENCODE, failure=FailureKind.OUT_OF_MEMORY, detail="too big")
    settle(connection, RUN, [failed])
    after = image(connection)
    kept = ("processing_status", "failure_kind", "processing_error", "processing_completed_at", "processing_attempts")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert after["processing_status"] == "completed"
    assert visible(connection) == paths("x")
    job = jobs(connection)[-1]
    assert (job["status"], job["rollout"], job["failure_kind"]) == ("failed", "avif_thumbnails", "out_of_memory")
    assert job["error_details"] == {"original": "A"}


def fail_rollout(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(
        connection,
        RUN,
        [outcome(take_one(connection), Verdict.FAILED, Stage.ENCODE, failure=FailureKind.TRANSCODE_TIMEOUT)],
    )


def test_a_failed_rollout_is_not_tried_again_every_night(connection: sa.Connection) -> None:
    fail_rollout(connection)
    assert roll_out(connection) == 0


def test_a_failed_rollout_is_tried_again_with_another_original(connection: sa.Connection) -> None:
    fail_rollout(connection)
    see(connection, reference(source_url(picture="B")))
    settle(connection, RUN, [published(take_one(connection), "new", sha256="B")])
    assert roll_out(connection) == 1


def test_a_failed_rollout_is_tried_again_when_it_is_started_anew(connection: sa.Connection) -> None:
    fail_rollout(connection)
    connection.execute(sa.text("UPDATE cdn_rollouts SET started_at = clock_timestamp()"))
    assert roll_out(connection) == 1


def test_a_rollout_in_trouble_is_retried_as_what_it_is(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    settle(
        connection,
        RUN,
        [outcome(take_one(connection), Verdict.RETRYING, Stage.ENCODE, failure=FailureKind.UPLOAD_FAILED)],
    )
    job = take_one(connection)
    assert (job.recipe, job.stage, job.retry_count) == (AVIF_THUMBNAILS, Stage.ENCODE, 1)


def test_a_claim_tells_the_validators_of_the_stored_original(connection: sa.Connection) -> None:
    publish_and_roll_out(connection)
    job = take_one(connection)
    assert (job.source_etag, job.source_last_modified) == ('"etag"', None)
