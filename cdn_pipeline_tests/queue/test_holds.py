import dataclasses
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.due import count_due
from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.queue.leases import Run, release_dead_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.upkeep.rollout import pause_rollout, resume_rollout, start_rollout
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    RUN,
    image,
    jobs,
    only,
    open_jobs,
    outcome,
    publish,
    reference,
    see,
    source_url,
    take,
    take_one,
)


def due(connection: sa.Connection) -> int:
    return count_due(connection, EVERYTHING, SHARDS)


def test_a_cleared_queue_has_nothing_due_and_can_be_restored_as_it_was(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number)) for number in range(3)))
    assert hold_queue(connection, INSTAGRAM) == 3
    assert (due(connection), take(connection)) == (0, [])
    assert len(open_jobs(connection)) == 3
    assert restore_queue(connection, INSTAGRAM) == 3
    assert len(take(connection)) == 3


def test_holding_twice_keeps_the_first_time_and_restoring_twice_restores_nothing_more(
    connection: sa.Connection,
) -> None:
    see(connection, reference())
    assert hold_queue(connection, INSTAGRAM) == 1
    before = jobs(connection)
    assert hold_queue(connection, INSTAGRAM) == 0
    assert jobs(connection) == before
    assert [restore_queue(connection, INSTAGRAM) for _ in range(2)] == [1, 0]


def test_a_restored_retry_waits_for_its_time(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = outcome(
        take_one(connection), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, retry_in_seconds=3600, total_ms=100
    )
    settle(connection, RUN, [failed])
    before = only(connection, "cdn_image_jobs")
    assert hold_queue(connection, INSTAGRAM) == 1
    restore_queue(connection, INSTAGRAM)
    after = only(connection, "cdn_image_jobs")
    assert (after["next_attempt_at"], after["retry_count"]) == (before["next_attempt_at"], 1)
    assert due(connection) == 0


def test_shards_priorities_and_collection_can_be_selected(connection: sa.Connection) -> None:
    for shard in ("00", "01"):
        see(connection, reference(image=f"avatar {shard}", shard=shard))
        see(connection, reference(image=f"post {shard}", shard=shard, source_type="post_thumbnail"))
    assert hold_queue(connection, dataclasses.replace(INSTAGRAM, name="vehicles")) == 0
    assert hold_queue(connection, INSTAGRAM, shards=[], priorities=[]) == 0
    assert hold_queue(connection, INSTAGRAM, shards=["00"], priorities=[4, 5]) == 1
    assert {job.source_id for job in take(connection)} == {"avatar 00", "avatar 01", "post 01"}
    assert restore_queue(connection, INSTAGRAM, shards=["01"]) == 0
    assert restore_queue(connection, INSTAGRAM, priorities=[2]) == 0
    assert restore_queue(connection, INSTAGRAM, shards=["00"], priorities=[4]) == 1
    assert take_one(connection).source_id == "post 00"


def test_a_job_in_hand_is_finished_by_its_run(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    assert hold_queue(connection, INSTAGRAM) == 0
    assert settle(connection, RUN, [outcome(job, Verdict.UNCHANGED)]) == {job.job_id}
    assert image(connection)["processing_status"] == "completed"


def test_a_job_that_comes_back_from_a_dead_run_is_not_held(connection: sa.Connection) -> None:
    see(connection, reference())
    take_one(connection, Run("dead", "there:2"))
    hold_queue(connection, INSTAGRAM)
    assert release_dead_leases(connection, SHARDS) == 1
    assert due(connection) == 1


@pytest.mark.parametrize("picture", ["A", "B"], ids=["signed again", "another picture"])
def test_a_held_job_follows_its_image_and_stays_held(connection: sa.Connection, picture: str) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    hold_queue(connection, INSTAGRAM)
    fresh = source_url("fresh", picture=picture, lives=timedelta(days=9))
    see(connection, reference(fresh))
    [job] = open_jobs(connection)
    assert (job["source_url"], job["deadline"]) == (fresh.url, fresh.expires_at)
    assert job["held_at"] is not None
    assert due(connection) == 0
    restore_queue(connection, INSTAGRAM)
    assert take_one(connection).urls == (fresh.url,)


def test_finished_jobs_are_not_held(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert hold_queue(connection, INSTAGRAM) == 0


# -- rollouts --


@pytest.mark.parametrize("recipe", INSTAGRAM.recipes, ids=lambda recipe: recipe.name)
def test_jobs_of_a_paused_rollout_are_held_until_it_is_resumed(
    connection: sa.Connection, catalog: sa.Engine, recipe: Recipe
) -> None:
    see(connection, reference())
    publish(connection)
    connection.execute(sa.text("UPDATE cdn_image_renditions SET recipe_version = 0"))
    assert sum(shard.opened for shard in start_rollout(catalog, INSTAGRAM, recipe.name)) == 1
    assert pause_rollout(connection, INSTAGRAM, recipe.name) == 1
    assert [restore_queue(connection, INSTAGRAM), due(connection)] == [0, 0]
    assert resume_rollout(connection, INSTAGRAM, recipe.name) == 1
    assert [hold_queue(connection, INSTAGRAM), due(connection)] == [1, 0]
    assert [restore_queue(connection, INSTAGRAM), due(connection)] == [1, 1]


def test_a_paused_rollout_holds_nothing_else(connection: sa.Connection, catalog: sa.Engine) -> None:
    for recipe in INSTAGRAM.recipes:
        list(start_rollout(catalog, INSTAGRAM, recipe.name))
        pause_rollout(connection, INSTAGRAM, recipe.name)
    see(connection, reference())
    hold_queue(connection, INSTAGRAM)
    assert restore_queue(connection, INSTAGRAM) == 1
