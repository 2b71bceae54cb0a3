"""The stage of a simulation: databases whose clocks move, an environment and a Dagster instance, all in one folder."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import dagster as dg
import sqlalchemy as sa
from sqlalchemy import make_url

from benchmarks.simulation import history
from benchmarks.simulation.timeline import SimulatedClock, Timeline, Travel
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, DEMO_DATABASE
from cdn_pipeline.demo import app_database, fast_clock
from cdn_pipeline.settings import load_settings, project_root

_DAGSTER_DATABASE = "dagster"


@dataclass(frozen=True, slots=True)
class SimulatedStage:
    """A migrated catalog that keeps a history of its jobs, an empty application database, and their time."""

    timeline: Timeline
    catalog: sa.Engine
    source: sa.Engine
    instance: dg.DagsterInstance


@contextmanager
def open_simulated_stage(folder: Path, start: datetime, travel: Travel) -> Iterator[SimulatedStage]:
    """Builds it in an empty folder, at a time of its own; this process's environment is that of its runs."""
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        catalog, source = (stack.enter_context(_database(server, name)) for name in (CATALOG_DATABASE, DEMO_DATABASE))
        clock = SimulatedClock(travel, catalog, source)
        clock.move_to(start)
        stack.enter_context(_environment(folder, catalog, source))
        migrate(catalog, load_settings().public_base_url)
        history.install(catalog)
        app_database.create_tables(source)
        instance = stack.enter_context(_instance(folder / "dagster", server))
        yield SimulatedStage(Timeline(clock), catalog, source, instance)


@contextmanager
def _database(server: EmbeddedPostgres, name: str) -> Iterator[sa.Engine]:
    """A database whose clock moves. It is thrown away, so nothing need reach the disk."""
    server.ensure_database(name)
    engine = sa.create_engine(server.url(name))
    fast_clock.install(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("ALTER SYSTEM SET fsync = off"))
        connection.execute(sa.text("SELECT pg_reload_conf()"))
    yield engine
    engine.dispose()


@contextmanager
def _environment(folder: Path, catalog: sa.Engine, source: sa.Engine) -> Iterator[None]:
    """The contract's variables for this stage, until the block ends."""
    variables = {
        "CDN_PIPELINE_VAR_DIR": str(folder / "var"),
        "CATALOG_DATABASE_URL": _plain_url(catalog),
        "SOURCE_DATABASE_URL": _plain_url(source),
        "OBJECT_STORE_URL": (folder / "objects").as_uri(),
        "ORIGINALS_STORE_URL": (folder / "originals").as_uri(),
        "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
        "DAGSTER_HOME": str(folder / "dagster"),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _plain_url(engine: sa.Engine) -> str:
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _instance(home: Path, server: EmbeddedPostgres) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance with the project's own configuration, on Postgres as in production.

    On SQLite an event takes 16 ms, most of it waiting for the disk: a simulation takes twice as long.
    """
    server.ensure_database(_DAGSTER_DATABASE)
    url = make_url(server.url(_DAGSTER_DATABASE)).set(drivername="postgresql+psycopg2")
    storage = {"storage": {"postgres": {"postgres_url": url.render_as_string(hide_password=False)}}}
    home.mkdir()
    own = (project_root() / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text(f"{own}\n{json.dumps(storage)[1:-1]}\n")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance
