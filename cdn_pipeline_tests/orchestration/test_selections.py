"""What an operator selects or configures: stages, owners, a limit, checks alone."""

from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.orchestration.workplace import (
    ALL_SHARDS,
    ORIGINALS,
    PUBLISHED,
    RENDITIONS,
    Workplace,
    verdicts,
)
from cdn_pipeline_tests.world import SmallWorld, World

IMAGES = 8


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    """Eight profiles with nothing but an avatar."""
    return small_world(profiles=IMAGES, posts=0)


def open_jobs(catalog: sa.Engine) -> object:
    with catalog.connect() as connection:
        return connection.execute(
            sa.text("SELECT count(*) FROM cdn_image_jobs WHERE status IN ('queued', 'processing')")
        ).scalar_one()


def test_stages_can_run_one_after_the_other(memory_workplace: Workplace, world: World, catalog: sa.Engine) -> None:
    downloaded = memory_workplace.materialize(["source_images", "original_images"], *ALL_SHARDS)
    assert downloaded.success
    assert memory_workplace.sum_of("downloaded", downloaded.run_id, ORIGINALS) == IMAGES
    world.origin.advance_clock(timedelta(days=10))  # no URL is good any more
    requests = world.origin.requests.total

    encoded = memory_workplace.materialize(["image_renditions"], *ALL_SHARDS)
    assert encoded.success
    assert memory_workplace.sum_of("renditions", encoded.run_id, RENDITIONS) == 2 * IMAGES
    assert {asset for asset, _ in memory_workplace.materializations(encoded.run_id)} == {"image_renditions"}

    published = memory_workplace.materialize(["published_images"], *ALL_SHARDS)
    assert published.success
    assert memory_workplace.sum_of("published", published.run_id) == IMAGES
    assert world.origin.requests.total == requests
    assert open_jobs(catalog) == 0


def test_images_are_encoded_again_from_stored_originals(memory_workplace: Workplace, world: World) -> None:
    assert memory_workplace.run(*ALL_SHARDS).success
    world.origin.advance_clock(timedelta(days=10))
    requests = world.origin.requests.total
    stages = ["image_renditions", "published_images"]

    nothing = memory_workplace.materialize(stages, *ALL_SHARDS)
    assert nothing.success
    assert memory_workplace.sum_of("renditions", nothing.run_id, RENDITIONS) == 0

    forced = memory_workplace.materialize(stages, *ALL_SHARDS, config={"force": True})
    assert forced.success
    assert memory_workplace.sum_of("renditions", forced.run_id, RENDITIONS) == 2 * IMAGES
    assert memory_workplace.sum_of("published", forced.run_id) == IMAGES
    assert world.origin.requests.total == requests
    assert ("original_images", "00") not in memory_workplace.materializations(forced.run_id)


def test_force_owners_and_limit_choose_what_is_processed_again(
    memory_workplace: Workplace, world: World, catalog: sa.Engine
) -> None:
    assert memory_workplace.run(*ALL_SHARDS).success
    owner = str(world.profile_ids[0])
    shard = shard_of(world.profile_ids[0])

    one_owner = memory_workplace.run(*ALL_SHARDS, config={"force": True, "owner_ids": [owner]})
    assert one_owner.success
    assert memory_workplace.sum_of("downloaded", one_owner.run_id, ORIGINALS) == 1
    assert memory_workplace.metadata(one_owner.run_id, PUBLISHED, shard)["published"] == 1

    limited = memory_workplace.run(*ALL_SHARDS, config={"force": True, "limit": 3})
    assert limited.success
    assert memory_workplace.sum_of("claimed images", limited.run_id, ORIGINALS) == 3

    # forced, but neither downloading nor encoding is selected: no job is opened that this run would not do
    assert memory_workplace.materialize(["published_images"], *ALL_SHARDS, config={"force": True}).success
    assert open_jobs(catalog) == 0


def test_the_check_of_the_store_can_be_executed_alone(memory_workplace: Workplace, world: World) -> None:
    assert memory_workplace.run(*ALL_SHARDS).success

    inspected = memory_workplace.check("published_objects_in_store")

    assert inspected.success
    assert verdicts(inspected) == {"published_objects_in_store": (True, "WARN")}
    assert inspected.get_asset_check_evaluations()[0].metadata["inspected"].value == 2 * IMAGES


def test_checks_that_judge_a_run_say_so_when_they_are_executed_alone(memory_workplace: Workplace, world: World) -> None:
    run = memory_workplace.check("success_rate", "published_objects_in_store", "few_images_gone_or_expired")

    assert not run.success
    assert set(verdicts(run)) == {"published_objects_in_store"}
    [failure] = [event for event in run.all_events if event.event_type is dg.DagsterEventType.STEP_FAILURE]
    assert failure.step_failure_data.user_failure_data is not None
    assert failure.step_failure_data.user_failure_data.description == (
        "few_images_gone_or_expired, success_rate: judged when images are processed; "
        "materialize published_images instead"
    )
