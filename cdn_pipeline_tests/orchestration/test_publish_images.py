"""The job on a small world: what Dagster is told, and what the exit status says."""

from datetime import timedelta
from itertools import product
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.orchestration.workplace import ALL_SHARDS, ASSETS, ORIGINALS, PUBLISHED, Workplace, verdicts
from cdn_pipeline_tests.world import SmallWorld, World

RUN_CHECKS = ("success_rate", "few_images_gone_or_expired", "published_objects_in_store")


def published_shards(catalog: sa.Engine) -> set[str]:
    current = "SELECT asset_id FROM cdn_image_renditions WHERE state = 'current'"
    with catalog.connect() as connection:
        return set(connection.scalars(sa.text(f"SELECT shard FROM cdn_image_assets WHERE id IN ({current})")))


def assert_checks_are_current(workplace: Workplace) -> None:
    """What the UI asks: does the last evaluation of each shard speak of its last materialization?"""
    key = dg.AssetCheckKey(PUBLISHED, "shard_success_rate")
    found = workplace.instance.event_log_storage.get_asset_check_partition_info([key])
    assert {info.partition_key for info in found if info.is_current} == set(SHARDS)


def spoil_avatars(world: World, count: int, fault: Fault) -> None:
    """Some avatars are answered wrongly for good, whichever of their URLs is asked for."""
    with world.engine.connect() as connection:
        urls = connection.scalars(sa.text("SELECT profile_pic_url FROM profiles ORDER BY id")).all()
    for url in urls[:count]:
        path = url.removeprefix(world.origin.base_url).partition("?")[0]
        world.origin.misbehaviour.order(path, fault, attempts=100)


# -- events --


def test_one_shard_then_all_of_them_then_nothing(
    workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    world = small_world(profiles=5, posts=2)
    shards = {shard_of(profile_id) for profile_id in world.profile_ids}
    shard = min(shards)

    assert workplace.execute(shard) == 0, workplace.log.read_text()
    run_id = workplace.latest_run().run_id
    assert published_shards(catalog) == {shard}
    assert workplace.materializations(run_id) == {(asset.to_user_string(), shard): 1 for asset in ASSETS}
    assert workplace.check_statuses("shard_success_rate") == {shard: "SUCCEEDED"}
    metadata = workplace.metadata(run_id, PUBLISHED, shard)
    assert metadata["published"] > 0
    assert metadata["success rate"] == 1
    assert "](http://127.0.0.1:8000/th/ig/" in metadata["sample pictures"]

    assert workplace.execute(*ALL_SHARDS) == 0, workplace.log.read_text()
    assert published_shards(catalog) == shards
    one_event_each = {(asset.to_user_string(), shard): 1 for asset, shard in product(ASSETS, SHARDS)}
    assert workplace.materializations(workplace.latest_run().run_id) == one_event_each
    for asset in ASSETS:
        assert workplace.statuses(asset) == dict.fromkeys(SHARDS, "MATERIALIZED")
    assert workplace.check_statuses("shard_success_rate") == dict.fromkeys(SHARDS, "SUCCEEDED")
    assert_checks_are_current(workplace)
    for check in RUN_CHECKS:
        assert workplace.check_statuses(check) == {None: "SUCCEEDED"}

    requests = world.origin.requests.total
    again = workplace.run(*ALL_SHARDS)
    assert again.success
    assert workplace.materializations(again.run_id) == one_event_each
    assert workplace.sum_of("claimed images", again.run_id, ORIGINALS) == 0
    assert world.origin.requests.total == requests
    assert_checks_are_current(workplace)


# -- checks --


def test_the_command_fails_when_more_than_a_tenth_of_the_images_fail(
    workplace: Workplace, small_world: SmallWorld
) -> None:
    spoil_avatars(small_world(profiles=25, posts=0), 3, Fault.HTML_PAGE)

    assert workplace.execute(*ALL_SHARDS) == 1

    run_id = workplace.latest_run().run_id
    assert workplace.latest_run().status is dg.DagsterRunStatus.FAILURE
    assert "22 of 25 images completed (88.0%), below 90%" in workplace.log.read_text()
    assert {check: workplace.check_statuses(check) for check in RUN_CHECKS} == {
        "success_rate": {None: "FAILED"},
        "few_images_gone_or_expired": {None: "SUCCEEDED"},
        "published_objects_in_store": {None: "SUCCEEDED"},
    }
    # the run went to its end: what could be published was
    assert workplace.statuses() == dict.fromkeys(SHARDS, "MATERIALIZED")
    assert workplace.sum_of("published", run_id) == 22
    assert workplace.sum_of("failed: not_an_image", run_id, ORIGINALS) == 3


def test_between_90_and_95_percent_the_run_warns_and_succeeds(
    memory_workplace: Workplace, small_world: SmallWorld
) -> None:
    spoil_avatars(small_world(profiles=25, posts=0), 2, Fault.GONE)

    run = memory_workplace.run(*ALL_SHARDS)

    assert run.success
    assert verdicts(run)["success_rate"] == (False, "WARN")


def test_failures_among_fewer_than_20_images_do_not_fail_the_run(
    memory_workplace: Workplace, small_world: SmallWorld
) -> None:
    spoil_avatars(small_world(profiles=19, posts=0), 10, Fault.HTML_PAGE)

    run = memory_workplace.run(*ALL_SHARDS)

    assert run.success
    assert verdicts(run)["success_rate"] == (True, "WARN")
    assert memory_workplace.sum_of("published", run.run_id) == 9


def test_expired_images_fail_the_run_by_a_check_of_their_own(
    memory_workplace: Workplace, small_world: SmallWorld
) -> None:
    small_world(profiles=20, posts=0).origin.advance_clock(timedelta(days=10))

    run = memory_workplace.run(*ALL_SHARDS)

    assert not run.success
    assert verdicts(run)["few_images_gone_or_expired"] == (False, "ERROR")
    assert verdicts(run)["success_rate"] == (True, "WARN")
    assert memory_workplace.sum_of("failed: source_url_expired", run.run_id, ORIGINALS) == 20


def test_a_published_object_that_is_missing_fails_the_next_run(
    memory_workplace: Workplace, small_world: SmallWorld, tmp_path: Path
) -> None:
    small_world(profiles=2, posts=0)
    assert memory_workplace.run(*ALL_SHARDS).success
    lost = next((tmp_path / "objects").rglob("512/*.webp"))
    lost.unlink()

    run = memory_workplace.run("00")

    assert not run.success
    assert verdicts(run)["published_objects_in_store"] == (False, "ERROR")
    [inspection] = [made for made in run.get_asset_check_evaluations() if made.check_name == RUN_CHECKS[2]]
    assert inspection.metadata["missing"].value == [f"/{lost.relative_to(tmp_path / 'objects')}"]
    assert inspection.metadata["inspected"].value == 4
