"""Warm Celery workers: the same definitions, on a real broker, with Postgres and an S3 server between the processes.

Nobody starts a run here: the daemon's sensor asks for them, as in production, and again after a worker was killed.
"""

import os
import runpy
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import dagster as dg
import obstore
import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.faults import NO_FAULTS, Fault, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.orchestration.run_requests import BRIDGED
from cdn_pipeline.queue.watermarks import advance_watermarks
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.changes import marks_of_now
from cdn_pipeline.store.objects import ObjectStore
from cdn_pipeline_tests.deploy.files import DEPLOY, load_yaml
from cdn_pipeline_tests.orchestration.conftest import run_environment
from cdn_pipeline_tests.orchestration.workplace import ROOT, Workplace, opened_workplace, wait_until
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.world import SmallWorld, World

__all__ = ["moto_server", "run_environment"]

SEED = 1  # of a world whose two shards are far apart
INSTANCE = DEPLOY / "celery" / "dagster.yaml"
WORKER_CONFIGURATION = DEPLOY / "celery" / "dagster_celery_config.py"
MISSING = [
    name
    for name, there in {
        "redis-server": shutil.which("redis-server"),
        "dagster-celery (the extra `celery`)": find_spec("dagster_celery"),
    }.items()
    if not there
]


@pytest.fixture(scope="module")
def celery_installed() -> None:
    if MISSING and os.environ.get("CDN_PIPELINE_CELERY") != "required":
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    assert not MISSING


def test_the_instance_differs_from_production_only_in_its_launcher() -> None:
    instance = dict(load_yaml(INSTANCE))
    assert instance.pop("run_launcher")["class"] == "CeleryRunLauncher"
    assert instance == load_yaml(DEPLOY / "production" / "dagster.yaml")


def test_what_workers_are_told_are_settings_that_celery_knows(celery_installed: None) -> None:
    celery = import_module("celery.app.defaults")
    known = {name for name, _ in celery.flatten(celery.NAMESPACES)}
    told = {name for name, value in runpy.run_path(str(WORKER_CONFIGURATION)).items() if not callable(value)}
    told = {name for name in told if not name.startswith("_") and name != "worker_process_init"}
    assert told
    assert told <= known


@pytest.fixture
def origin(picture_folder: Path) -> Iterator[Origin]:
    """It answers to the fault SLOW after a minute."""
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), slow_seconds=60) as origin:
        yield origin


@pytest.fixture
def world(small_world: SmallWorld, catalog: sa.Engine) -> World:
    """Two profiles whose shards are too far apart for one run; the origin is slow with their avatars.

    All shards were read a moment ago, so it is only these two that have news.
    """
    world = small_world(profiles=2, posts=3, seed=SEED)
    first, second = sorted(SHARDS.index(shard_of(profile_id)) for profile_id in world.profile_ids)
    assert second - first > BRIDGED + 1
    with catalog.begin() as connection:
        advance_watermarks(connection, INSTAGRAM, marks_of_now(world.engine))
    with world.engine.begin() as connection:
        connection.execute(sa.text("UPDATE profiles SET updated_at = clock_timestamp()"))
        avatars = connection.execute(sa.text("SELECT profile_pic_url, profile_pic_url_hd FROM profiles")).all()
    for url in (url for avatar in avatars for url in avatar if url):
        path = url.removeprefix(world.origin.base_url).partition("?")[0]
        world.origin.misbehaviour.order(path, Fault.SLOW, attempts=1000)
    return world


@pytest.fixture
def renditions(run_environment: None, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store of renditions; originals and Dagster's logs have buckets of their own on the same server."""
    url = f"s3://{moto_server.new_bucket()}"
    for name, value in {
        "OBJECT_STORE_URL": url,
        "ORIGINALS_STORE_URL": f"s3://{moto_server.new_bucket()}",
        "DAGSTER_LOGS_BUCKET_NAME": moto_server.new_bucket(),
        "R2_ENDPOINT_URL": moto_server.endpoint_url,
        "R2_ACCESS_KEY_ID": moto_server.access_key_id,
        "R2_SECRET_ACCESS_KEY": moto_server.secret_access_key,
        "AWS_ACCESS_KEY_ID": moto_server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": moto_server.secret_access_key,
    }.items():
        monkeypatch.setenv(name, value)
    return moto_server.store(url)


@pytest.fixture
def dagster_database(postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's storage, reached through the server's socket (libpq takes PGHOST where no host is named)."""
    name = f"dagster_{uuid4().hex}"
    postgres_server.ensure_database(name)
    monkeypatch.setenv("PGHOST", str(make_url(postgres_server.url(name)).query["host"]))
    for variable, value in {"HOST": "", "PORT": "5432", "DB": name, "USER": "postgres", "PASSWORD": "unused"}.items():
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{variable}", value)


@pytest.fixture
def broker(celery_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    port = free_port(0)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    with running(["redis-server", *options], tmp_path / "redis.log"):
        wait_until(lambda: answers(port))
        monkeypatch.setenv("CELERY_BROKER_URL", f"redis://127.0.0.1:{port}/0")
        monkeypatch.setenv("CELERY_RESULT_BACKEND", f"redis://127.0.0.1:{port}/1")
        yield


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


@dataclass(frozen=True)
class Cluster:
    """A Dagster home on Postgres, two Celery workers, and a daemon whose sensor asks for runs."""

    workplace: Workplace
    workers: Sequence[psutil.Process]
    catalog: sa.Engine

    def at_work(self) -> Mapping[str, psutil.Process]:
        """Which worker has pictures of which run in hand."""
        with self.catalog.connect() as connection:
            found = connection.execute(
                sa.text("SELECT DISTINCT run_id, worker_id FROM cdn_image_jobs WHERE status = 'processing'")
            ).all()
        process_ids = {run_id: int(worker_id.rpartition(":")[2]) for run_id, worker_id in found}
        below = {worker: {child.pid for child in worker.children(recursive=True)} for worker in self.workers}
        return {
            run_id: worker
            for run_id, process_id in process_ids.items()
            for worker, children in below.items()
            if process_id in children
        }

    def all_published(self) -> bool:
        """Whether every image of the world is."""
        with self.catalog.connect() as connection:
            states = set(connection.scalars(sa.text("SELECT processing_status FROM cdn_image_assets")))
        return states == {"completed"}

    def run(self, run_id: str) -> dg.DagsterRun:
        """A run as Dagster knows it now."""
        run = self.workplace.instance.get_run_by_id(run_id)
        assert run is not None
        return run


@pytest.fixture
def cluster(
    broker: None, renditions: ObjectStore, dagster_database: None, world: World, catalog: sa.Engine, tmp_path: Path
) -> Iterator[Cluster]:
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    with ExitStack() as stack:
        workplace = stack.enter_context(opened_workplace(tmp_path, INSTANCE))
        workers = [stack.enter_context(running_worker(name, tmp_path)) for name in ("one", "two")]
        switch_on = python("-m", "dagster", "sensor", "start", "due_images_sensor", *workspace)
        assert stack.enter_context(running(switch_on, tmp_path / "sensor.log")).wait() == 0
        stack.enter_context(running(python("-m", "dagster._daemon", "run", *workspace), tmp_path / "daemon.log"))
        yield Cluster(workplace, workers, catalog)


@contextmanager
def running_worker(name: str, folder: Path) -> Iterator[psutil.Process]:
    """A worker for one run at a time, as in deploy/systemd."""
    command = python("-m", "celery", "-A", "dagster_celery.app", "worker", "--concurrency", "1", "-n", f"{name}@%h")
    told = {"PYTHONPATH": str(WORKER_CONFIGURATION.parent)}
    with running(command, folder / f"{name}.log", environment=told) as process:
        yield psutil.Process(process.pid)


def kill(worker: psutil.Process) -> None:
    """SIGKILL to the worker and all below it, as when its machine is gone."""
    for process in [worker, *worker.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_killed_worker_loses_nothing_and_the_other_one_does_its_work(
    cluster: Cluster, world: World, catalog: sa.Engine, renditions: ObjectStore
) -> None:
    wait_until(lambda: len(set(cluster.at_work().values())) == 2)
    [(killed, worker), (survived, _)] = cluster.at_work().items()

    kill(worker)
    world.origin.misbehaviour = Misbehaviour(NO_FAULTS)
    wait_until(cluster.all_published)
    wait_until(lambda: cluster.run(survived).is_finished and cluster.run(killed).is_finished)

    assert cluster.run(survived).status is dg.DagsterRunStatus.SUCCESS
    assert cluster.run(killed).status is dg.DagsterRunStatus.FAILURE
    with catalog.connect() as connection:
        images = connection.execute(sa.text("SELECT count(*) FROM cdn_image_assets")).scalar_one()
        paths = connection.scalars(sa.text("SELECT path FROM cdn_image_renditions WHERE state = 'current'")).all()
        jobs = connection.execute(sa.text("SELECT count(*) FROM cdn_image_jobs")).scalar_one()
        superseded = connection.execute(
            sa.text("SELECT count(*) FROM cdn_image_renditions WHERE state <> 'current'")
        ).scalar_one()
    assert len(paths) == 2 * images
    assert (jobs, superseded) == (images, 0)  # one job each, and nothing was published a second time
    assert stored_keys(renditions) == {path.lstrip("/") for path in paths}


def stored_keys(store: ObjectStore) -> set[str]:
    return {thing["path"] for thing in obstore.list(store._store).collect()}
