"""Fixtures: a healthy set-up of real parts, and the doctor that looks at it after something was broken."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.examination import examine
from cdn_pipeline.observe.doctor.findings import Finding, State
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.settings import Settings, project_root
from cdn_pipeline_tests.observe.cdn import running_cdn
from cdn_pipeline_tests.observe.doctor.cloudflare import Cloudflare, running_cloudflare
from cdn_pipeline_tests.postgres import connect
from cdn_pipeline_tests.queue.catalogs import session
from cdn_pipeline_tests.sources.decodo_service import TOKEN as DECODO_TOKEN
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror
from cdn_pipeline_tests.world import SmallWorld

NOBODY = "127.0.0.1:9"  # where nobody answers

Findings = Mapping[str, Finding]
Doctor = Callable[..., Findings]


@pytest.fixture
def cloudflare() -> Iterator[Cloudflare]:
    with running_cloudflare() as cloudflare:
        yield cloudflare


@pytest.fixture
def healthy(
    environment: Mapping[str, str],
    catalog: sa.Engine,
    small_world: SmallWorld,
    cloudflare: Cloudflare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Mapping[str, str]]:
    """The environment of a deployment that lacks nothing, as this process has it until a test changes it."""
    small_world()
    home = tmp_path / "dagster"
    home.mkdir()
    shutil.copy(project_root() / "dagster.yaml", home)
    with session(catalog) as connection:
        _as_at_work(connection)
        mirror(connection, folder_stores(tmp_path), "a picture")
    with running_cdn(tmp_path / "objects") as cdn:
        migrate(catalog, cdn.base_url)
        whole = {
            **environment,
            **cloudflare.environment,
            "CDN_BASE_URL": cdn.base_url,
            "DAGSTER_HOME": str(home),
            "DECODO_AUTH_TOKEN": DECODO_TOKEN,
            "ALERT_URLS": "json://127.0.0.1:9/alerts",
            "ADMIN_API_TOKEN": "a" * 43,
        }
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
        for name, value in whole.items():
            monkeypatch.setenv(name, value)
        yield whole


def _as_at_work(connection: sa.Connection) -> None:
    """Traces of a daemon whose sensors and schedules are on."""
    beat(connection, "due_images_sensor")
    beat(connection, "alerts_sensor")
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, recent_rows, fully_scanned_at)
            VALUES ('instagram', '00', now(), 0, now())
        """)
    )
    connection.execute(sa.text("INSERT INTO cdn_processing_stats (date, hour) VALUES (current_date, 0)"))
    connection.execute(sa.text("INSERT INTO cdn_delivery_probes (path) VALUES ('/th/ig/a')"))


@pytest.fixture
def doctor(healthy: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Examines the healthy set-up with some variables changed, or without those that are None."""

    def examined(*, ask: bool = False, **changed: str | None) -> Findings:
        for name, value in changed.items():
            if value is None:
                monkeypatch.delenv(name)
            else:
                monkeypatch.setenv(name, value)
        with Deployment(ask_provider=ask) as deployment:
            return {checked.name: checked.finding for checked in examine(deployment)}

    return examined


def having(state: State, findings: Findings) -> set[str]:
    """The names of the checks that found so."""
    return {name for name, finding in findings.items() if finding.state is state}


def names(findings: Findings, check: str, cause: str, cure: str, *, state: State = State.FAILED) -> bool:
    """Whether this check says so, and no other has failed."""
    finding = findings[check]
    told = (finding.state, cause in finding.words, cure in f"{finding.cure} {' '.join(finding.paste)}")
    assert told == (state, True, True), finding
    assert having(State.FAILED, findings) <= {check}
    return True


def execute(url: str, *statements: str) -> None:
    """Each in a transaction of its own, as whoever pastes them does."""
    with connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
