from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS, Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.queue.leases import release_dead_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.reopen import open_rollout_jobs
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.upkeep.rollout import (
    RolloutStatus,
    UnknownRecipeError,
    pause_rollout,
    resume_rollout,
    rollout_status,
    start_rollout,
)
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    open_jobs,
    outcome,
    published,
    reference,
    refuse_illegal_transitions,
    rolled_out,
    see,
    session,
    source_url,
    take,
)

AVIF = AVIF_THUMBNAILS.name
PRESENT = AVIF_THUMBNAILS.version
NEW_WEBP = replace(INSTAGRAM, recipe=replace(WEBP_THUMBNAILS, version=WEBP_THUMBNAILS.version + 1))
SEVEN = 7


@pytest.fixture
def seven(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """Seven published images in four shards, and one that waits."""
    refuse_illegal_transitions(catalog)
    with session(catalog) as connection:
        images = [(str(number), SHARDS[number % 4]) for number in range(SEVEN)]
        see(connection, *(reference(image=image, shard=shard, age=timedelta(hours=1)) for image, shard in images))
        settle(connection, RUN, [published(job) for job in take(connection)])
        see(connection, reference(image="waits"))
        yield connection


def roll_out(catalog: sa.Engine, recipe: str = AVIF, collection: Collection = INSTAGRAM, **more: bool) -> int:
    """How many jobs a whole start opened."""
    progress = list(start_rollout(catalog, collection, recipe, **more))
    assert [step.shard for step in progress] == list(SHARDS)
    assert sum(step.opened for step in progress) == progress[-1].total
    return progress[-1].total


def work(connection: sa.Connection, count: int | None = None, verdict: Verdict = Verdict.PUBLISHED) -> None:
    """Does some of the rollout's jobs, and leaves the others in hand."""
    doing = [job for job in take(connection) if job.recipe == AVIF_THUMBNAILS][:count]
    ends = [rolled_out(job) for job in doing]
    if verdict is Verdict.FAILED:
        ends = [outcome(job, verdict, Stage.ENCODE, failure=FailureKind.OUT_OF_MEMORY) for job in doing]
    settle(connection, RUN, ends)


def status(connection: sa.Connection, collection: Collection = INSTAGRAM) -> dict[str, Any]:
    """The only rollout's numbers that are not 0."""
    (found,) = rollout_status(connection, collection)
    return {name: value for name in RolloutStatus.__slots__ if (value := getattr(found, name))}


def test_a_rollout_opens_a_job_for_every_published_image(catalog: sa.Engine, seven: sa.Connection) -> None:
    assert roll_out(catalog) == SEVEN
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "open": SEVEN, "total": SEVEN}


def test_progress_comes_shard_by_shard_and_an_interrupted_start_can_be_repeated(
    catalog: sa.Engine, seven: sa.Connection
) -> None:
    first, second = islice(start_rollout(catalog, INSTAGRAM, AVIF), 2)
    assert (first.shard, first.opened, first.total) == ("00", 2, 2)
    assert (second.shard, second.opened, second.total) == ("01", 2, 4)
    assert roll_out(catalog) == SEVEN - 4
    assert roll_out(catalog) == 0


def test_done_open_held_and_failed_add_up(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    work(seven, count=3)
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "done": 3, "open": 4, "total": SEVEN}
    release_dead_leases(seven, SHARDS)
    work(seven, verdict=Verdict.FAILED)
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "done": 3, "failed": 4, "total": SEVEN}


def test_a_replaced_picture_is_not_done_any_more(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    work(seven)
    see(seven, reference(source_url(picture="B"), image="0"))
    assert status(seven)["total"] == status(seven)["done"] == SEVEN - 1
    settle(seven, RUN, [published(job, "new", "B") for job in take(seven) if job.source_id == "0"])
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "done": SEVEN - 1, "total": SEVEN}
    assert open_rollout_jobs(seven, INSTAGRAM, SHARDS) == 1


def test_failed_images_are_tried_again_by_force_only(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    work(seven, verdict=Verdict.FAILED)
    assert roll_out(catalog) == 0
    assert roll_out(catalog, force=True) == SEVEN
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "open": SEVEN, "total": SEVEN}


def test_a_new_version_is_for_all_images_also_for_those_that_failed(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    work(seven, verdict=Verdict.FAILED)
    newer = replace(INSTAGRAM, rollouts=(replace(AVIF_THUMBNAILS, version=PRESENT + 1),))
    assert roll_out(catalog, collection=newer) == SEVEN
    assert status(seven, newer) == {"recipe": AVIF, "version": PRESENT + 1, "open": SEVEN, "total": SEVEN}


# -- pause and resume --


def test_a_paused_rollout_waits_and_nothing_else_does(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    assert pause_rollout(seven, INSTAGRAM, AVIF) == SEVEN
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "paused": True, "held": SEVEN, "total": SEVEN}
    assert [job.source_id for job in take(seven)] == ["waits"]
    assert pause_rollout(seven, INSTAGRAM, AVIF) == 0
    assert resume_rollout(seven, INSTAGRAM, AVIF) == SEVEN
    assert len(take(seven)) == SEVEN


def test_a_pause_while_jobs_are_being_opened_stops_the_rest(catalog: sa.Engine, seven: sa.Connection) -> None:
    progress = start_rollout(catalog, INSTAGRAM, AVIF)
    opened = next(progress).opened
    with catalog.begin() as connection:
        pause_rollout(connection, INSTAGRAM, AVIF)
    assert [each.opened for each in progress if each.opened] == []
    assert status(seven)["held"] == opened


def test_new_images_get_no_job_while_it_is_paused(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    pause_rollout(seven, INSTAGRAM, AVIF)
    settle(seven, RUN, [published(job) for job in take(seven)])
    assert open_rollout_jobs(seven, INSTAGRAM, SHARDS) == 0
    resume_rollout(seven, INSTAGRAM, AVIF)
    assert open_rollout_jobs(seven, INSTAGRAM, SHARDS) == 1


def test_starting_a_paused_rollout_resumes_it(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    pause_rollout(seven, INSTAGRAM, AVIF)
    *_, last = start_rollout(catalog, INSTAGRAM, AVIF)
    assert (last.total, last.let_go) == (0, SEVEN)
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "open": SEVEN, "total": SEVEN}


def test_a_resumed_job_has_not_been_due_while_it_was_on_hold(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    pause_rollout(seven, INSTAGRAM, AVIF)
    resumed_at = seven.scalar(sa.text("SELECT clock_timestamp()"))
    resume_rollout(seven, INSTAGRAM, AVIF)
    assert all(job["next_attempt_at"] >= resumed_at for job in open_jobs(seven) if job["rollout"])


def test_restoring_the_queue_does_not_resume_a_paused_rollout(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    pause_rollout(seven, INSTAGRAM, AVIF)
    hold_queue(seven, INSTAGRAM)
    restore_queue(seven, INSTAGRAM)
    assert status(seven)["held"] == SEVEN
    assert [job.source_id for job in take(seven)] == ["waits"]


def test_jobs_in_hand_are_finished_after_a_pause(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    in_hand = [job for job in take(seven) if job.recipe == AVIF_THUMBNAILS]
    assert pause_rollout(seven, INSTAGRAM, AVIF) == 0
    settle(seven, RUN, [rolled_out(job) for job in in_hand])
    assert status(seven) == {"recipe": AVIF, "version": PRESENT, "paused": True, "done": SEVEN, "total": SEVEN}


# -- the collection's own recipe --


def test_a_new_version_of_the_own_recipe_is_rolled_out_alike(catalog: sa.Engine, seven: sa.Connection) -> None:
    assert roll_out(catalog, WEBP_THUMBNAILS.name, NEW_WEBP) == SEVEN
    assert {job["rollout"] for job in open_jobs(seven)} == {None}
    assert pause_rollout(seven, NEW_WEBP, WEBP_THUMBNAILS.name) == SEVEN
    assert status(seven, NEW_WEBP) == {
        "recipe": WEBP_THUMBNAILS.name,
        "version": NEW_WEBP.recipe.version,
        "paused": True,
        "held": SEVEN,
        "total": SEVEN,
    }
    new = Selection(NEW_WEBP, frozenset(Stage))
    assert [job.source_id for job in take(seven, selection=new)] == ["waits"]
    assert resume_rollout(seven, NEW_WEBP, WEBP_THUMBNAILS.name) == SEVEN
    again = take(seven, selection=new)
    version = NEW_WEBP.recipe.version
    done = [
        replace(made, renditions=tuple(replace(each, recipe_version=version) for each in made.renditions))
        for made in map(rolled_out, again[1:])
    ]
    failed = outcome(again[0], Verdict.FAILED, Stage.ENCODE, failure=FailureKind.IMAGE_CORRUPT)
    settle(seven, RUN, [failed, *done])
    assert status(seven, NEW_WEBP) == {
        "recipe": WEBP_THUMBNAILS.name,
        "version": NEW_WEBP.recipe.version,
        "done": SEVEN - 1,
        "failed": 1,
        "total": SEVEN,
    }
    assert roll_out(catalog, WEBP_THUMBNAILS.name, NEW_WEBP) == 0  # failed for good, as any image


def test_rolling_out_what_all_images_have_opens_nothing(catalog: sa.Engine, seven: sa.Connection) -> None:
    assert roll_out(catalog, WEBP_THUMBNAILS.name) == 0
    assert status(seven) == {
        "recipe": WEBP_THUMBNAILS.name,
        "version": WEBP_THUMBNAILS.version,
        "done": SEVEN,
        "total": SEVEN,
    }


# -- refusals --


def test_a_recipe_that_there_is_not_is_refused_at_once(catalog: sa.Engine, seven: sa.Connection) -> None:
    with pytest.raises(UnknownRecipeError, match="webp_thumbnails, avif_thumbnails"):
        start_rollout(catalog, INSTAGRAM, "jpeg")
    for change in (pause_rollout, resume_rollout):
        with pytest.raises(UnknownRecipeError, match="webp_thumbnails, avif_thumbnails"):
            change(seven, INSTAGRAM, "jpeg")
    assert rollout_status(seven, INSTAGRAM) == []


def test_what_was_never_started_can_be_neither_paused_nor_resumed(catalog: sa.Engine, seven: sa.Connection) -> None:
    for change in (pause_rollout, resume_rollout):
        with pytest.raises(UnknownRecipeError, match="start it first"):
            change(seven, INSTAGRAM, AVIF)


def test_a_rollout_of_a_recipe_of_other_code_is_left_out(catalog: sa.Engine, seven: sa.Connection) -> None:
    roll_out(catalog)
    assert rollout_status(seven, replace(INSTAGRAM, rollouts=())) == []
