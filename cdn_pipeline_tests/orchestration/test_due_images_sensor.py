"""The sensor on a small world: what it asks for is run, and what it asked for is not asked for twice."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.demo import app_database as demo
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.orchestration import sensors
from cdn_pipeline.orchestration.sensors import due_images_sensor
from cdn_pipeline.queue.heartbeats import last_beat
from cdn_pipeline.queue.leases import hold_run
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.orchestration.workplace import (
    ALL_SHARDS,
    ASSETS,
    Workplace,
    begin_run,
    begin_run_ago,
    report,
    shard_tags,
)
from cdn_pipeline_tests.world import SmallWorld, World

SOURCE = ASSETS[0]


@pytest.fixture
def place(memory_workplace: Workplace) -> Iterator[Workplace]:
    """Databases of a test are gone after it, and so are the sensor's connections."""
    yield memory_workplace
    sensors._databases.close()


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    return small_world(profiles=3, posts=0)


def tick(place: Workplace) -> Sequence[dg.RunRequest] | str:
    """What one evaluation of the sensor asks for, or why it asks for nothing."""
    with dg.build_sensor_context(instance=place.instance, definitions=defs) as context:
        answer = due_images_sensor.evaluate_tick(context)
    return answer.run_requests or answer.skip_message or ""


def requests(place: Workplace) -> Sequence[dg.RunRequest]:
    asked = tick(place)
    assert not isinstance(asked, str), asked
    return asked


def execute(place: Workplace, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("publish_images").execute_in_process(
        instance=place.instance, tags=request.tags, run_config=request.run_config
    )


def read_sources(world: World, catalog: sa.Engine) -> None:
    """What a run's discovery does."""
    list(discover(world.engine, catalog, INSTAGRAM, SHARDS))


def change_queue(catalog: sa.Engine, change: str) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text(f"UPDATE cdn_image_jobs SET {change} WHERE status = 'queued'"))


def published(catalog: sa.Engine) -> set[str]:
    with catalog.connect() as connection:
        shown = "SELECT source_id FROM cdn_image_urls WHERE cdn_path_256 IS NOT NULL AND cdn_path_512 IS NOT NULL"
        return set(connection.scalars(sa.text(shown)))


def test_new_rows_are_published_by_the_run_that_the_sensor_asks_for(
    place: Workplace, world: World, catalog: sa.Engine
) -> None:
    (first,) = requests(place)
    assert shard_tags(*ALL_SHARDS).items() <= first.tags.items()
    assert execute(place, first).success
    assert published(catalog) == {str(profile_id) for profile_id in world.profile_ids}
    assert str(tick(place)).startswith("nothing is due; no source row changed since ")

    profile_id = demo.add_profile(world.engine, world.origin.signer, seed=7, posts=0)
    (request,) = requests(place)
    shard = shard_of(profile_id)
    assert {"dagster/partition": shard, "lane": "regular", "dagster/priority": "0"}.items() <= request.tags.items()
    run = execute(place, request)
    assert run.success
    assert str(profile_id) in published(catalog)
    discovered = place.metadata(run.run_id, SOURCE, shard)
    assert (discovered["scope"], discovered["profiles"], discovered["new"]) == ("changed rows", 1, 1)
    assert isinstance(tick(place), str)


def test_a_scan_of_everything_says_so_and_tells_what_is_gone(place: Workplace, world: World) -> None:
    assert place.run(*ALL_SHARDS).success
    with world.engine.begin() as connection:
        connection.execute(demo.profiles_table.delete())
    again = place.run(*ALL_SHARDS)
    assert place.metadata(again.run_id, SOURCE, "00")["scope"] == "every row"
    assert place.sum_of("removed", again.run_id, SOURCE) == 3


def test_every_tick_is_a_heartbeat(place: Workplace, world: World, catalog: sa.Engine) -> None:
    tick(place)
    with catalog.connect() as connection:
        assert last_beat(connection) is not None


def test_one_tick_evaluated_twice_has_the_same_keys(place: Workplace, world: World) -> None:
    first, second = [request.run_key or "" for _ in range(2) for request in requests(place)]
    for key in (first, second):
        assert re.fullmatch(r"00-3f:regular:\d{4}-\d\d-\d\dT\d\d:\d\dZ", key)
    a_minute_apart = datetime.fromisoformat(second[-17:]) - datetime.fromisoformat(first[-17:]) == timedelta(minutes=1)
    assert first == second or a_minute_apart


@pytest.mark.parametrize(
    "tags",
    [
        shard_tags(*ALL_SHARDS),
        {**shard_tags("00", "2f"), "lane": "regular"},
    ],
)
def test_shards_of_a_run_that_has_not_ended_are_not_asked_for_twice(
    place: Workplace, world: World, tags: dict[str, str]
) -> None:
    begin_run(place.instance, **tags)
    asked = tick(place)
    if tags == shard_tags(*ALL_SHARDS):
        assert asked == "nothing is due; runs are reading changed source rows of 64 shards"
    else:
        assert not isinstance(asked, str)
        (request,) = asked
        assert shard_tags("30", "3f").items() <= request.tags.items()


def test_a_single_shard_that_runs_already_is_bridged_or_left_out(place: Workplace, world: World) -> None:
    begin_run(place.instance, **shard_tags("00"))
    (request,) = requests(place)
    assert shard_tags("01", "3f").items() <= request.tags.items()


@pytest.mark.parametrize("bulk", [{"lane": "bulk"}, {"dagster/backfill": "b"}])
def test_a_bulk_run_does_not_keep_new_rows_waiting(place: Workplace, world: World, bulk: dict[str, str]) -> None:
    begin_run(place.instance, "nightly_freshness", **shard_tags(*ALL_SHARDS), **bulk)
    (request,) = requests(place)
    assert request.tags["lane"] == "regular"


def test_runs_of_other_jobs_and_finished_runs_cover_nothing(place: Workplace, world: World) -> None:
    place.instance.report_run_canceled(begin_run(place.instance, **shard_tags(*ALL_SHARDS)))
    begin_run(place.instance, "hourly_stats", **{"dagster/partition": "2026-03-01-00:00"})
    (request,) = requests(place)
    assert shard_tags(*ALL_SHARDS).items() <= request.tags.items()


def test_materializing_some_assets_covers_nothing_and_all_of_them_what_it_names(place: Workplace, world: World) -> None:
    everything = defs.resolve_implicit_global_asset_job_def()

    def begin_assets(assets: Sequence[dg.AssetKey]) -> dg.DagsterRun:
        return place.instance.create_run_for_job(
            everything.get_subset(asset_selection=set(assets)),
            tags=shard_tags(*ALL_SHARDS),
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset(assets),
        )

    begin_assets(ASSETS[:1])
    assert len(requests(place)) == 1
    begin_assets(ASSETS)
    assert isinstance(tick(place), str)


def test_a_run_whose_process_was_killed_covers_nothing(place: Workplace, world: World, catalog: sa.Engine) -> None:
    run = begin_run(place.instance, **shard_tags(*ALL_SHARDS))
    assert isinstance(tick(place), str)
    with catalog.begin() as connection:
        registered = sa.text("INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES (:run_id, 1, 'here:1')")
        connection.execute(registered, {"run_id": run.run_id})
    assert len(requests(place)) == 1


def test_a_run_that_never_came_to_register_is_failed_ten_minutes_after_its_start(
    place: Workplace, world: World, catalog: sa.Engine
) -> None:
    long, shortly, hour = timedelta(minutes=11), timedelta(minutes=9), {"dagster/partition": "2026-03-01-00:00"}
    runs = (
        begin_run_ago(place.instance, long, **shard_tags("05")),
        begin_run_ago(place.instance, shortly, **shard_tags("05")),
        begin_run_ago(place.instance, long, "hourly_stats", **hour),
        registered := begin_run_ago(place.instance, long, **shard_tags("05")),
    )
    with hold_run(catalog, registered.run_id):
        tick(place)
    found = [place.instance.get_run_by_id(run.run_id) for run in runs]
    assert [run.status.value if run else None for run in found] == ["FAILURE", "STARTED", "STARTED", "STARTED"]


def test_a_regular_run_leaves_the_work_of_a_rollout_to_bulk_runs(
    place: Workplace, world: World, catalog: sa.Engine
) -> None:
    read_sources(world, catalog)
    change_queue(catalog, "priority = 10")
    new = demo.add_profile(world.engine, world.origin.signer, seed=7, posts=0)
    *bulk, regular = sorted(requests(place), key=lambda request: request.tags["lane"])
    assert [*{request.tags["lane"] for request in bulk}, regular.tags["lane"]] == ["bulk", "regular"]
    tags = {name: value for name, value in regular.tags.items() if name != "dagster/partition"}
    everywhere = dg.RunRequest(tags={**tags, **shard_tags(*ALL_SHARDS)}, run_config=regular.run_config)
    assert execute(place, everywhere).success
    assert published(catalog) == {str(new)}
    assert all(execute(place, request).success for request in bulk)
    assert len(published(catalog)) == 4


def test_shards_whose_runs_failed_three_times_lately_rest_and_a_users_request_does_not(
    place: Workplace, world: World, catalog: sa.Engine
) -> None:
    read_sources(world, catalog)
    tags = {"dagster/sensor_name": due_images_sensor.name, "lane": "regular"}
    for minutes in (1, 2, 3):
        failed = begin_run(place.instance, **shard_tags(*ALL_SHARDS), **tags)
        report(place.instance, failed, dg.DagsterEventType.PIPELINE_FAILURE, timedelta(minutes=minutes))
    said = str(tick(place))
    assert said.startswith("3 runs of 00-3f failed in the last 15 minutes; trying again at "), said
    assert "; elsewhere nothing is due; no source row changed" in said
    change_queue(catalog, "priority = 1")
    assert {request.tags["lane"] for request in requests(place)} == {"urgent"}


def test_a_users_request_gets_its_own_lane_also_beside_a_backfill(
    place: Workplace, world: World, catalog: sa.Engine
) -> None:
    assert place.run(*ALL_SHARDS, config={"limit": 1}).success
    change_queue(catalog, "priority = 10")
    begin_run(place.instance, **shard_tags(*ALL_SHARDS), lane="bulk")
    assert str(tick(place)).startswith("runs are at work on the 2 images due in 2 shards; ")
    with catalog.begin() as connection:
        first = "(SELECT id FROM cdn_image_jobs WHERE status = 'queued' LIMIT 1)"
        shard = connection.scalar(sa.text(f"UPDATE cdn_image_jobs SET priority = 1 WHERE id = {first} RETURNING shard"))
    (request,) = requests(place)
    assert {"dagster/partition": shard, "lane": "urgent", "dagster/priority": "10"}.items() <= request.tags.items()


def test_a_tick_without_its_source_fails_in_words_and_the_next_one_works(
    place: Workplace, world: World, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.setenv("SOURCE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Exception, match=r"the application database \(SOURCE_DATABASE_URL\) does not answer"):
        tick(place)
    monkeypatch.setenv("CATALOG_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Exception, match=r"the catalog \(CATALOG_DATABASE_URL\) does not answer"):
        tick(place)
    for name in ("SOURCE_DATABASE_URL", "CATALOG_DATABASE_URL"):
        monkeypatch.setenv(name, environment[name])
    assert len(requests(place)) == 1


def test_ticks_share_their_connections(place: Workplace, world: World) -> None:
    tick(place)
    with sensors._databases.in_use() as before:
        pass
    tick(place)
    with sensors._databases.in_use() as after:
        assert after is before


def test_the_sensor_is_stopped_until_somebody_starts_it(place: Workplace) -> None:
    assert due_images_sensor.default_status is dg.DefaultSensorStatus.STOPPED
    assert due_images_sensor.minimum_interval_seconds == 20
    assert due_images_sensor.description
