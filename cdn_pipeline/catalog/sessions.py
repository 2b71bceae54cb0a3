"""Connections: to the catalog (ours) and to the application database (read only)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
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


class CatalogUnavailable(Exception):
    """The catalog cannot be reached, or cannot be written to; the message says what it said last."""


def transaction(engine: sa.Engine, work: Callable[[sa.Connection], _T], *, patience: timedelta = timedelta(0)) -> _T:
    """Runs `work` in a transaction, and again if Postgres chose it to break a deadlock.

    With `patience`, also again while the catalog is away: a restart, a failover, a full disk. `work` may then have been
    committed by an attempt whose answer was lost.

    Raises:
        CatalogUnavailable: it was away for longer than `patience`, if there was any.
    """
    if not patience:
        return _transaction(engine, work)
    try:
        for attempt in stamina.retry_context(
            on=is_away, attempts=None, timeout=patience, wait_initial=0.25, wait_max=5.0, wait_jitter=0.25
        ):
            with attempt:
                return _transaction(engine, work)
    except sa.exc.DBAPIError as error:
        if is_away(error):
            raise CatalogUnavailable(
                f"the catalog has been away for {patience.total_seconds():.0f} s: {error.orig}"
            ) from error
        raise
    raise AssertionError("retry_context returns or raises")


def _transaction(engine: sa.Engine, work: Callable[[sa.Connection], _T]) -> _T:
    for attempt in stamina.retry_context(on=_was_deadlocked, attempts=5, wait_initial=0.05, wait_jitter=0.2):
        with attempt, engine.begin() as connection:
            return work(connection)
    raise AssertionError("retry_context returns or raises")


def _was_deadlocked(error: Exception) -> bool:
    return isinstance(error, sa.exc.OperationalError) and getattr(error.orig, "sqlstate", None) == "40P01"


# Connection exceptions, insufficient resources (disk, connections), an operator's or a crash's shutdown, and a failover
# that left us on a standby. A connection that was never made, or was cut, has no state.
_AWAY_CLASSES = ("08", "53", "57P")
_READ_ONLY = "25006"


def is_away(error: BaseException) -> bool:
    """Whether the error says that a database cannot be reached or written to just now."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, CatalogUnavailable)
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
    return str(state).startswith(_AWAY_CLASSES) or state == _READ_ONLY


def catalog_time(connection: sa.Connection) -> datetime:
    """The catalog's clock, so that all machines agree on what was sighted before and on what has expired."""
    now: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    return now


def with_driver(url: str) -> str:
    """`postgres://…` and `postgresql://…` as a SQLAlchemy URL that names psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in ("postgres", "postgresql"):
        found = f"{scheme}://" if separator else "something without ://"  # never the URL: it holds a password
        raise ConfigurationError(f"a database URL must start with postgresql://, not {found}")
    with_driver = f"postgresql+psycopg://{rest}"
    try:
        parsed = sa.make_url(with_driver)
    except (ValueError, sa.exc.ArgumentError):
        raise ConfigurationError("a database URL is postgresql://user:password@host:port/database") from None
    # Otherwise part of the password would be taken for the host's name, and errors tell that.
    if "@" in (parsed.host or "") or "password" in parsed.query:
        raise ConfigurationError("a database URL has its password before the host, and an @ in it as %40")
    return with_driver
