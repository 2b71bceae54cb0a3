"""What webserver and daemon do with the definitions: one session of `dagster dev` for all of it."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa
from dagster._core.definitions.automation_tick_evaluation_context import (
    build_run_requests_with_backfill_policies,
)
from dagster._core.definitions.events import AssetKeyPartitionKey

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.demo.faults import NO_FAULTS, Fault, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.orchestration.workplace import (
    ASSETS,
    ROOT,
    Workplace,
    shard_tags,
    start_dagster,
    wait_until,
)
from cdn_pipeline_tests.world import SmallWorld


def test_a_backfill_of_all_shards_is_four_runs() -> None:
    asked = [AssetKeyPartitionKey(asset, shard) for asset in ASSETS for shard in SHARDS]
    with dg.DagsterInstance.ephemeral() as instance:
        requests = build_run_requests_with_backfill_policies(asked, defs.resolve_asset_graph(), instance)
    ranges = [
        (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
            set(request.asset_selection or ()),
        )
        for request in requests
    ]
    assert ranges == [(f"{n}0", f"{n}f", set(ASSETS)) for n in range(4)]


@dataclass(frozen=True)
class Webserver:
    """The GraphQL side of a running `dagster dev`."""

    url: str

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            return json.load(answer)["data"]

    def has_loaded(self) -> bool:
        with suppress(URLError, ConnectionError):
            return bool(self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"))
        return False


@pytest.fixture
def origin(picture_folder: Path) -> Iterator[Origin]:
    """It answers to the fault SLOW after a minute."""
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), slow_seconds=60) as origin:
        yield origin


@pytest.fixture
def webserver(workplace: Workplace) -> Iterator[Webserver]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["dev", "-w", str(ROOT / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    process = start_dagster(arguments, workplace.folder, workplace.log)
    webserver = Webserver(f"http://127.0.0.1:{port}")
    try:
        wait_until(lambda: process.poll() is not None or webserver.has_loaded())
        assert process.poll() is None, workplace.log.read_text()
        yield webserver
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        process.send_signal(signal.SIGTERM)
        for survivor in psutil.wait_procs(family, timeout=20)[1]:
            survivor.kill()


LAUNCH = """
mutation ($tags: [ExecutionTag!]!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: "cdn_pipeline", repositoryName: "__repository__", jobName: "publish_images"},
    runConfigData: {}, mode: "default", executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
TERMINATE = "mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"
CHECKS = """
{ assetNodes(assetKeys: [{path: ["published_images"]}]) { assetChecksOrError { ... on AssetChecks { checks {
    name partitionStatuses { ... on AssetCheckDefaultPartitionStatuses { succeededPartitions } } } } } } }"""


def test_a_run_that_is_terminated_in_the_ui_is_cancelled_and_leaves_nothing(
    workplace: Workplace, webserver: Webserver, small_world: SmallWorld, catalog: sa.Engine
) -> None:
    world = small_world(profiles=2, posts=0)
    finished, slow = sorted(map(shard_of, world.profile_ids))
    with world.engine.connect() as connection:
        url = connection.scalars(sa.text("SELECT profile_pic_url FROM profiles ORDER BY id DESC LIMIT 1")).one()
    path = url.removeprefix(world.origin.base_url).partition("?")[0]
    world.origin.misbehaviour.order(path, Fault.SLOW, attempts=1000)
    tags = [{"key": key, "value": value} for key, value in shard_tags(finished, slow).items()]

    run_id = webserver.ask(LAUNCH, tags=tags)["launchRun"]["run"]["runId"]
    wait_until(lambda: workplace.statuses().get(finished) == "MATERIALIZED" and in_hand(catalog) == 1)
    process = psutil.Process(process_id(catalog, run_id))
    everybody = [process, *process.children(recursive=True)]
    assert len(everybody) > 1  # the run and its workers
    webserver.ask(TERMINATE, run=run_id)
    wait_until(lambda: finished_run(workplace, run_id))

    run = workplace.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert in_hand(catalog) == 0
    assert not psutil.wait_procs(everybody, timeout=10)[1]
    assert workplace.statuses()[finished] == "MATERIALIZED"
    assert workplace.statuses().get(slow) != "MATERIALIZED"
    [node] = webserver.ask(CHECKS)["assetNodes"]
    shown = {check["name"]: check["partitionStatuses"] for check in node["assetChecksOrError"]["checks"]}
    assert finished in shown["shard_success_rate"]["succeededPartitions"]


def process_id(catalog: sa.Engine, run_id: str) -> int:
    """The run's own process: a grandchild of `dagster dev`."""
    with catalog.connect() as connection:
        worker_id = connection.scalars(
            sa.text("SELECT worker_id FROM cdn_runs WHERE run_id = :run_id"), {"run_id": run_id}
        ).one()
    return int(worker_id.rpartition(":")[2])


def in_hand(catalog: sa.Engine) -> object:
    with catalog.connect() as connection:
        return connection.execute(
            sa.text("SELECT count(*) FROM cdn_image_jobs WHERE status = 'processing'")
        ).scalar_one()


def finished_run(workplace: Workplace, run_id: str) -> bool:
    run = workplace.instance.get_run_by_id(run_id)
    return run is not None and run.is_finished
