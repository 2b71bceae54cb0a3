"""A user's refresh from the request to the published picture: by way of the sensor, and of Dagster's webserver."""

import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg
import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.orchestration import sensors
from cdn_pipeline.orchestration.sensors import due_images_sensor
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.refreshes import EXPIRES_AFTER, Limits, open_refresh
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.api.apis import api
from cdn_pipeline_tests.engine.runs import image, rows
from cdn_pipeline_tests.engine.test_refresh import order, other_avatar
from cdn_pipeline_tests.orchestration.workplace import (
    ALL_SHARDS,
    ROOT,
    Workplace,
    begin_run,
    begin_run_ago,
    shard_tags,
    wait_until,
)
from cdn_pipeline_tests.sources.decodo_service import TOKEN, DecodoService, running_decodo
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture(autouse=True)
def closed_sensor() -> Iterator[None]:
    """Databases of a test are gone after it, and so are the sensor's connections."""
    yield
    sensors._databases.close()


@pytest.fixture
def decodo() -> Iterator[DecodoService]:
    with running_decodo() as service:
        yield service


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    return small_world(profiles=2, posts=1)


def requests(place: Workplace) -> Sequence[dg.RunRequest]:
    """What one evaluation of the sensor asks for."""
    with dg.build_sensor_context(instance=place.instance, definitions=defs) as context:
        return due_images_sensor.evaluate_tick(context).run_requests or ()


def execute(place: Workplace, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("publish_images").execute_in_process(
        instance=place.instance, tags=request.tags, run_config=request.run_config
    )


def path(owner: uuid.UUID) -> str:
    return f"/api/v1/creators/ig/{owner}/media/refresh"


def discover_and_hold(world: World, catalog: sa.Engine) -> None:
    """All images are known, and no run is needed for any."""
    list(discover(world.engine, catalog, INSTAGRAM, SHARDS))
    with catalog.begin() as connection:
        hold_queue(connection, INSTAGRAM)


def ask(catalog: sa.Engine, owner: uuid.UUID) -> None:
    with catalog.begin() as connection:
        open_refresh(connection, INSTAGRAM, str(owner), Limits())


def test_an_avatar_replaced_at_the_provider_is_published_by_the_run_that_the_sensor_asks_for(
    memory_workplace: Workplace,
    world: World,
    settings: Settings,
    catalog: sa.Engine,
    decodo: DecodoService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert memory_workplace.run(*ALL_SHARDS).success
    assert requests(memory_workplace) == ()
    monkeypatch.setenv("DECODO_API_URL", decodo.base_url)
    monkeypatch.setenv("DECODO_AUTH_TOKEN", TOKEN)
    owner, other = world.profile_ids
    order(decodo, world, owner, **other_avatar(world, owner))
    before = {each: image(catalog, each)["original_sha256"] for each in (owner, other)}
    downloads = world.origin.requests.total

    with api(settings) as client:
        assert client.post(path(owner)).json()["status"] == "queued"
        (request,) = requests(memory_workplace)
        urgent = {"dagster/partition": shard_of(owner), "lane": "urgent", "dagster/priority": "10"}
        assert urgent.items() <= request.tags.items()
        assert execute(memory_workplace, request).success
        finished = client.get(path(owner)).json()
        assert (finished["status"], finished["answer"]) == ("finished", "answered")
        assert finished["run"]["started_by"] == "sensor"

    assert image(catalog, owner)["original_sha256"] != before[owner]
    assert image(catalog, other)["original_sha256"] == before[other]
    assert {row["processing_status"] for row in rows(catalog, "SELECT * FROM cdn_image_assets")} == {"completed"}
    assert world.origin.requests.total == downloads + 1  # unchanged pictures are no work
    assert requests(memory_workplace) == ()


def test_a_run_is_asked_for_once_while_one_is_on_its_way_and_again_for_a_later_refresh(
    memory_workplace: Workplace, world: World, catalog: sa.Engine
) -> None:
    discover_and_hold(world, catalog)
    owner = world.profile_ids[0]
    ask(catalog, owner)
    run = begin_run(memory_workplace.instance, lane="urgent", **shard_tags(shard_of(owner)))
    assert requests(memory_workplace) == ()
    memory_workplace.instance.report_run_canceled(run)
    assert len(requests(memory_workplace)) == 1
    begin_run_ago(memory_workplace.instance, timedelta(minutes=2), lane="urgent", **shard_tags(shard_of(owner)))
    begin_run(memory_workplace.instance, lane="bulk", **shard_tags(*ALL_SHARDS))
    assert [request.tags["lane"] for request in requests(memory_workplace)] == ["urgent"]


def test_the_sensor_closes_a_refresh_that_no_run_came_to(
    memory_workplace: Workplace, world: World, catalog: sa.Engine
) -> None:
    discover_and_hold(world, catalog)
    ask(catalog, world.profile_ids[0])
    with catalog.begin() as connection:
        old = sa.text("UPDATE cdn_refreshes SET requested_at = requested_at - CAST(:ago AS interval)")
        connection.execute(old, {"ago": EXPIRES_AFTER})
    assert requests(memory_workplace) == ()
    assert [row["answer"] for row in rows(catalog, "SELECT answer FROM cdn_refreshes")] == ["expired"]


@pytest.fixture
def webserver(workplace: Workplace) -> Iterator[str]:
    """Dagster's webserver without its daemon, so that a queued run stays queued; its GraphQL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["-w", str(ROOT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    with workplace.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster_webserver", *arguments],
            cwd=workplace.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    url = f"http://127.0.0.1:{port}/graphql"
    try:
        wait_until(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, workplace.log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.post(url, json={"query": "{ version }"}, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_dagsters_own_webserver_starts_the_run_that_the_sensor_would_ask_for(
    workplace: Workplace, webserver: str, world: World, settings: Settings, catalog: sa.Engine
) -> None:
    discover_and_hold(world, catalog)
    owner = world.profile_ids[0]
    ask(catalog, owner)
    (wanted,) = requests(workplace)
    with catalog.begin() as connection:
        connection.execute(sa.text("DELETE FROM cdn_refreshes"))

    with api(settings, dagster_graphql_url=webserver) as client:
        run = client.post(path(owner)).json()["run"]

    assert run["started_by"] == "dagster"
    launched = workplace.instance.get_run_by_id(run["id"])
    assert launched is not None
    assert (launched.job_name, launched.status) == ("publish_images", dg.DagsterRunStatus.QUEUED)
    assert launched.run_config["ops"] == wanted.run_config["ops"]
    chosen = ("dagster/partition", "dagster/priority", "lane")
    assert [launched.tags[name] for name in chosen] == [wanted.tags[name] for name in chosen]
    assert requests(workplace) == ()
