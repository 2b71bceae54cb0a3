"""Connections: to the catalog (ours) and to the application database (read only)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
import stamina

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate, require_current
from cdn_pipeline.settings import ConfigurationError, Settings

_T = TypeVar("_T")

CATALOG_DATABASE = "cdn_catalog"
DEMO_DATABASE = "demo_application"

# Without keepalives a dead network path would hold a run's advisory lock until the kernel gives up, hours later.
_CONNECT_ARGS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


@contextmanager
def open_catalog(settings: Settings) -> Iterator[sa.Engine]:
    """The catalog, migrated.

    The embedded database is started and migrated; any other must have been migrated by `cdn-pipeline migrate`.

    Raises:
        CatalogOutdatedError: the schema or the base URL written into it is not this code's.
    """
    with _engine(settings, settings.catalog_database_url, CATALOG_DATABASE) as engine:
        if settings.embedded_catalog:
            migrate(engine, settings.public_base_url)
        else:
            require_current(engine, settings.public_base_url)
        yield engine


@contextmanager
def open_unmigrated_catalog(settings: Settings) -> Iterator[sa.Engine]:
    """The catalog as it is, for `cdn-pipeline migrate`."""
    with _engine(settings, settings.catalog_database_url, CATALOG_DATABASE) as engine:
        yield engine


@contextmanager
def open_source_database(settings: Settings) -> Iterator[sa.Engine]:
    """The application database; every transaction is read only, so nothing of ours is ever written there."""
    with _engine(settings, settings.source_database_url, DEMO_DATABASE) as engine:
        yield engine.execution_options(postgresql_readonly=True)


@contextmanager
def open_demo_database(settings: Settings) -> Iterator[sa.Engine]:
    """The demo's application database, writable."""
    if not settings.embedded_source:
        raise ConfigurationError("the demo writes its own application database: unset SOURCE_DATABASE_URL")
    with _engine(settings, None, DEMO_DATABASE) as engine:
        yield engine


@contextmanager
def _engine(settings: Settings, url: str | None, embedded_database: str) -> Iterator[sa.Engine]:
    if url is not None:
        with _pool(with_driver(url)) as engine:
            yield engine
        return
    with EmbeddedPostgres(settings.cdn_pipeline_var_dir / "postgres") as server:
        server.ensure_database(embedded_database)
        with _pool(server.url(embedded_database)) as engine:
            yield engine


@contextmanager
def _pool(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, connect_args=_CONNECT_ARGS, pool_pre_ping=True)
    try:
        yield engine
    finally:
        engine.dispose()


def transaction(engine: sa.Engine, work: Callable[[sa.Connection], _T]) -> _T:
    """Runs `work` in a transaction, and again if Postgres chose it to break a deadlock."""
    for attempt in stamina.retry_context(on=_was_deadlocked, attempts=5, wait_initial=0.05, wait_jitter=0.2):
        with attempt, engine.begin() as connection:
            return work(connection)
    raise AssertionError("retry_context returns or raises")


def _was_deadlocked(error: Exception) -> bool:
    return isinstance(error, sa.exc.OperationalError) and getattr(error.orig, "sqlstate", None) == "40P01"


def with_driver(url: str) -> str:
    """`postgres://…` and `postgresql://…` as a SQLAlchemy URL that names psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        found = f"{scheme}://" if separator else "something without ://"  # never the URL: it holds a password
        raise ConfigurationError(f"a database URL must start with postgresql://, not {found}")
    return f"postgresql+psycopg://{rest}"
