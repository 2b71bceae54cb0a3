"""Fixtures: a migrated catalog, and everything a run needs, configured for a small world."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.postgres import connect

BASE_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """A migrated database that others are copied from: 0.05 s instead of 0.2 s each."""
    name = f"template_{uuid4().hex}"
    postgres_server.ensure_database(name)
    engine = sa.create_engine(postgres_server.url(name))
    migrate(engine, BASE_URL)
    engine.dispose()
    return name


@pytest.fixture
def catalog_database(postgres_server: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh, migrated catalog."""
    name = f"catalog_{uuid4().hex}"
    with connect(postgres_server.url("postgres")) as connection:
        _execute(connection, "CREATE DATABASE {} TEMPLATE {}", name, migrated_template)
    yield postgres_server.url(name)
    with connect(postgres_server.url("postgres")) as connection:
        _execute(connection, "DROP DATABASE {} WITH (FORCE)", name)


def _execute(connection: psycopg.Connection, statement: str, *names: str) -> None:
    connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@pytest.fixture
def catalog(catalog_database: str) -> Iterator[sa.Engine]:
    """An engine on a fresh, migrated catalog."""
    engine = sa.create_engine(catalog_database)
    yield engine
    engine.dispose()


@pytest.fixture
def environment(catalog_database: str, empty_database: str, tmp_path: Path) -> Mapping[str, str]:
    """The contract's variables for a run on a small world, with folder stores."""
    return {
        "CDN_PIPELINE_VAR_DIR": str(tmp_path / "var"),
        "SOURCE_DATABASE_URL": empty_database,
        "CATALOG_DATABASE_URL": catalog_database,
        "OBJECT_STORE_URL": (tmp_path / "objects").as_uri(),
        "ORIGINALS_STORE_URL": (tmp_path / "originals").as_uri(),
        "CDN_BASE_URL": BASE_URL,
        "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
    }


@pytest.fixture
def settings(environment: Mapping[str, str]) -> Settings:
    """The settings of that environment."""
    values = {name.lower(): value for name, value in environment.items()}
    return Settings(_env_file=None, **values)  # type: ignore[arg-type, call-arg]
