"""The night's work: which runs the schedule asks for, and what such a run does on a small world."""

from asyncio import StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import PartitionKeyRange

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.demo.serving import in_thread
from cdn_pipeline.orchestration.partitions import image_shards
from cdn_pipeline.orchestration.schedules import nightly_freshness_schedule
from cdn_pipeline_tests.fetch.origins import Origin, origin, response
from cdn_pipeline_tests.orchestration.workplace import ALL_SHARDS, ORIGINALS, Workplace, shard_tags
from cdn_pipeline_tests.sources.decodo_service import (
    TOKEN,
    DecodoService,
    kill_urls,
    profile_page,
    running_decodo,
    user_of_rows,
)
from cdn_pipeline_tests.world import SmallWorld

SOURCES = dg.AssetKey("source_images")

ETAG = b'"4711"'


def nightly(workplace: Workplace) -> dg.ExecuteInProcessResult:
    """The job of all shards, as `dagster job execute` starts it: with tags and without configuration."""
    job = defs.resolve_job_def("nightly_freshness")
    return job.execute_in_process(instance=workplace.instance, tags=shard_tags(*ALL_SHARDS), raise_on_error=False)


def run_log(workplace: Workplace, run: dg.ExecuteInProcessResult) -> str:
    return "\n".join(entry.user_message for entry in workplace.instance.all_logs(run.run_id))


def change(catalog: sa.Engine, statement: str) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text(statement))


# -- the schedule --


def tick(night: datetime) -> list[dg.RunRequest]:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance=instance, scheduled_execution_time=night)
        return list(nightly_freshness_schedule.evaluate_tick(context).run_requests or ())


def test_a_night_covers_all_shards_once_in_four_runs() -> None:
    requests = tick(datetime(2026, 2, 3, 2, tzinfo=UTC))
    ranges = [
        PartitionKeyRange(
            request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]
        )
        for request in requests
    ]
    assert len(ranges) == 4
    assert [shard for each in ranges for shard in image_shards.get_partition_keys_in_range(each)] == list(SHARDS)


def test_the_nights_runs_leave_the_other_place_to_work_that_cannot_wait() -> None:
    assert nightly_freshness_schedule.job_name == "nightly_freshness"
    assert defs.resolve_job_def("nightly_freshness").run_tags["lane"] == "bulk"


def test_a_run_is_asked_for_once_a_night() -> None:
    nights = [datetime(2026, 2, day, 2, tzinfo=UTC) for day in (3, 4)]
    keys = [request.run_key for night in nights for request in tick(night)]
    assert keys[0] == "2026-02-03:00-0f"
    assert len(set(keys)) == 8
    assert [request.run_key for request in tick(nights[0])] == keys[:4]


# -- the run --


def test_a_retry_that_waits_six_hours_is_tried_now(
    memory_workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    small_world(profiles=3, posts=0)
    assert memory_workplace.materialize(["source_images"], *ALL_SHARDS).success
    change(catalog, "UPDATE cdn_image_jobs SET retry_count = 6, next_attempt_at = now() + interval '6 hours'")
    by_day = memory_workplace.run(*ALL_SHARDS)
    assert memory_workplace.sum_of("claimed images", by_day.run_id, ORIGINALS) == 0

    by_night = nightly(memory_workplace)

    assert by_night.success
    assert memory_workplace.sum_of("published", by_night.run_id) == 3
    assert "retries released: 3, pictures to be checked at the source: 0" in run_log(memory_workplace, by_night)


def test_what_a_maintenance_page_refused_by_day_is_had_by_night_under_the_same_url(
    memory_workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    world = small_world(profiles=1, posts=0)
    with world.engine.connect() as connection:
        url = connection.scalar(sa.text("SELECT profile_pic_url_hd FROM profiles"))
    world.origin.misbehaviour.order(urlsplit(url).path, Fault.HTML_PAGE, attempts=2)  # for both URLs of the picture
    assert memory_workplace.run(*ALL_SHARDS).success
    change(catalog, "UPDATE cdn_image_assets SET processing_started_at = now() - interval '12 hours'")
    by_day = memory_workplace.run(*ALL_SHARDS)
    assert memory_workplace.sum_of("claimed images", by_day.run_id, ORIGINALS) == 0

    by_night = nightly(memory_workplace)

    assert by_night.success
    assert "refused ones tried again: 1" in run_log(memory_workplace, by_night)
    assert memory_workplace.sum_of("published", by_night.run_id) == 1


def test_a_night_asks_instagram_for_nothing_that_is_published(
    memory_workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    world = small_world(profiles=3, posts=2)
    assert memory_workplace.run(*ALL_SHARDS).success
    change(catalog, "UPDATE cdn_image_assets SET processing_completed_at = now() - interval '3 days'")
    requests = world.origin.requests.total

    assert nightly(memory_workplace).success

    assert world.origin.requests.total == requests


@asynccontextmanager
async def answering_conditionally() -> AsyncIterator[Origin]:
    async def answer(_: str, writer: StreamWriter) -> None:
        unchanged = b"If-None-Match: " + ETAG in log.requests[-1]
        writer.write(response(304, b"") if unchanged else response(headers={"ETag": ETAG.decode()}))

    async with origin(answer) as log:
        yield log


@pytest.fixture
def vendor() -> Iterator[Origin]:
    """A host whose URLs do not name the picture, never expire, and come with an ETag."""
    with in_thread(answering_conditionally()) as log:
        yield log


def test_a_picture_that_did_not_change_costs_one_conditional_request_a_night(
    memory_workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine, vendor: Origin
) -> None:
    world = small_world(profiles=1, posts=0)
    change(
        world.engine,
        f"UPDATE profiles SET profile_pic_url = NULL, profile_pic_url_hd = '{vendor.base}/cars/4711/front.jpg'",
    )
    assert memory_workplace.run(*ALL_SHARDS).success
    change(catalog, "UPDATE cdn_image_assets SET processing_completed_at = now() - interval '1 day'")

    by_night = nightly(memory_workplace)

    assert by_night.success
    assert "pictures to be checked at the source: 1" in run_log(memory_workplace, by_night)
    assert [ETAG in request for request in vendor.requests] == [False, True]
    assert memory_workplace.sum_of("unchanged", by_night.run_id, ORIGINALS) == 1
    assert memory_workplace.sum_of("published", by_night.run_id) == 0
    assert nightly(memory_workplace).success
    assert len(vendor.requests) == 2


# -- fresh URLs --


@pytest.fixture
def decodo() -> Iterator[DecodoService]:
    with running_decodo() as service:
        yield service


def test_without_a_provider_the_night_says_that_images_wait(
    memory_workplace: Workplace, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    world = small_world(profiles=2, posts=0)
    kill_urls(world.engine, world.origin.now() - timedelta(days=2))
    by_night = nightly(memory_workplace)
    assert by_night.success
    assert memory_workplace.sum_of("still waiting for a URL", by_night.run_id, SOURCES) == 2
    assert memory_workplace.metadata(by_night.run_id, SOURCES, "00")["provider"] == "no provider configured"
    assert "no provider configured; images that still wait: 2" in run_log(memory_workplace, by_night)


def test_the_night_fetches_urls_again_and_publishes_their_pictures(
    memory_workplace: Workplace,
    small_world: SmallWorld,
    decodo: DecodoService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = small_world(profiles=2, posts=1)
    for profile_id in world.profile_ids:
        user = user_of_rows(world.engine, world.origin.signer, profile_id, world.origin.now() + timedelta(days=4))
        decodo.order(user["username"], profile_page(user))
    decodo.looks_until_done = 0  # its pace is the real one
    kill_urls(world.engine, world.origin.now() - timedelta(days=2))
    monkeypatch.setenv("DECODO_API_URL", decodo.base_url)
    monkeypatch.setenv("DECODO_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("DECODO_REQUESTS_PER_SECOND", "100")

    by_night = nightly(memory_workplace)

    assert by_night.success
    numbers = ("profiles asked for", "profiles answered", "fresh URLs", "still waiting for a URL")
    assert [memory_workplace.sum_of(number, by_night.run_id, SOURCES) for number in numbers] == [2, 2, 4, 0]
    assert memory_workplace.metadata(by_night.run_id, SOURCES, "00")["provider budget left"] == 998
    assert memory_workplace.sum_of("published", by_night.run_id) == 4
    assert TOKEN not in run_log(memory_workplace, by_night)


def test_a_provider_that_refuses_us_is_a_warning_and_the_night_goes_on(
    memory_workplace: Workplace,
    small_world: SmallWorld,
    decodo: DecodoService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = small_world(profiles=2, posts=0)
    kill_urls(world.engine, world.origin.now() - timedelta(days=2))
    monkeypatch.setenv("DECODO_API_URL", decodo.base_url)
    monkeypatch.setenv("DECODO_AUTH_TOKEN", "wrong")
    by_night = nightly(memory_workplace)
    assert by_night.success
    assert "check DECODO_AUTH_TOKEN" in run_log(memory_workplace, by_night)


@pytest.mark.parametrize(("policy", "is_kept"), [("keep", True), ("expire", False)])
def test_a_profile_that_turned_private_is_erased_by_night_if_that_is_wanted(
    memory_workplace: Workplace,
    small_world: SmallWorld,
    catalog: sa.Engine,
    decodo: DecodoService,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    is_kept: bool,
) -> None:
    world = small_world(profiles=2, posts=0)
    users = [user_of_rows(world.engine, world.origin.signer, each, world.origin.now()) for each in world.profile_ids]
    for user, is_private in zip(users, (True, False), strict=True):
        decodo.order(user["username"], profile_page({**user, "is_private": is_private}))
    decodo.looks_until_done = 0  # its pace is the real one
    kill_urls(world.engine, world.origin.now() - timedelta(days=2))
    monkeypatch.setenv("DECODO_API_URL", decodo.base_url)
    monkeypatch.setenv("DECODO_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("DECODO_REQUESTS_PER_SECOND", "100")
    monkeypatch.setenv("PRIVATE_PROFILES", policy)

    by_night = nightly(memory_workplace)

    assert by_night.success
    with catalog.connect() as connection:
        owners = set(connection.scalars(sa.text("SELECT owner_id FROM cdn_image_assets")))
    private, public = map(str, world.profile_ids)
    assert owners == ({private, public} if is_kept else {public})
    assert (f"{private} turned private" in run_log(memory_workplace, by_night)) is not is_kept
