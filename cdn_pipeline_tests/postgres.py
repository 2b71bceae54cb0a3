"""Fixtures: a real Postgres server per test session (with pytest-xdist: per worker), and empty databases on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from cdn_pipeline.catalog.embedded import EmbeddedPostgres


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that everybody may enter: pytest's own are closed to the account that serves root."""
    with TemporaryDirectory(prefix="cdn_pipeline-tests-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder


def connect(url: str) -> psycopg.Connection:
    """A psycopg connection that commits by itself, from a URL for SQLAlchemy."""
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """A running server; its data are gone afterwards.

    So it need not write them to disk: with fsync its end takes about a second for every database made since the last
    checkpoint, without it 0.06 s.
    """
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as server:
        with connect(server.url("postgres")) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def empty_database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh database; it is dropped afterwards, whoever is still connected."""
    name = f"test_{uuid4().hex}"
    postgres_server.ensure_database(name)
    yield postgres_server.url(name)
    with connect(postgres_server.url("postgres")) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
