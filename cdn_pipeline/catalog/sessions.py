"""Connections: to the catalog (ours) and to the application database (read only)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
import stamina
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate, require_current
from cdn_pipeline.settings import ConfigurationError, Settings

_T = TypeVar("_T")

CATALOG_DATABASE = "cdn_catalog"
DEMO_DATABASE = "demo_application"

# Without keepalives a dead network path would hold a run's advisory lock until the kernel gives up, hours later.
_CONNECT_ARGS = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


# For the API: whoever asks it waits seconds at most, for a connection, a place in the pool and an answer.
SERVING_CONNECTIONS = 16
_SERVING_PATIENCE_SECONDS = 3
_SERVING_STATEMENT_SECONDS = 5
_SERVING_OPTIONS = {
    "connect_args": {**_CONNECT_ARGS, "connect_timeout": _SERVING_PATIENCE_SECONDS},
    "pool_size": SERVING_CONNECTIONS,
    "max_overflow": 0,
    "pool_timeout": _SERVING_PATIENCE_SECONDS,
    "pool_use_lifo": True,
    "pool_pre_ping": False,  # a round trip per request: `Serving.read` asks again instead
}


@contextmanager
def open_catalog(settings: Settings, *, serving: bool = False) -> Iterator[sa.Engine]:
    """The catalog, migrated; `serving` sets limits on waiting.

    The embedded database is started and migrated; any other must have been migrated by `cdn-pipeline migrate`.

    Raises:
        CatalogOutdatedError: the schema or the base URL written into it is not this code's.
    """
    options = _SERVING_OPTIONS if serving else {}
    with _engine(settings, settings.catalog_database_url, CATALOG_DATABASE, options) as engine:
        if settings.embedded_catalog:
            migrate(engine, settings.public_base_url)
        else:
            require_current(engine, settings.public_base_url)
        if serving:
            limit_statements(engine, _SERVING_STATEMENT_SECONDS)
            engine.dispose()  # those that migrated have no limit
        yield engine


class _ImpatientConnection(psycopg.Connection[Any]):
    """Is closed when the server has said nothing for `patience` seconds: one that is stopped cancels no statement."""

    patience: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # SQLAlchemy then makes a new one
            raise


_SILENCE_SECONDS = 2  # beyond its time limit, for the server to say that it has cancelled a statement


def limit_statements(engine: sa.Engine, seconds: int) -> None:
    """Has Postgres cancel what takes longer, on connections that the engine makes from now on.

    A server that does not even do that is given up, and its connection with it.
    """

    def connect(_dialect: object, _record: object, arguments: Any, options: Any) -> psycopg.Connection[Any]:
        return _ImpatientConnection.connect(*arguments, **options)

    def limit(connection: _ImpatientConnection, _: object) -> None:
        connection.patience = seconds + _SILENCE_SECONDS
        # Not as a start-up option: poolers refuse those.
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = '{seconds}s'")
        connection.autocommit = False

    sa.event.listen(engine, "do_connect", connect)
    sa.event.listen(engine, "connect", limit)


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
def _engine(
    settings: Settings, url: str | None, embedded_database: str, options: Mapping[str, Any] | None = None
) -> Iterator[sa.Engine]:
    if url is not None:
        with _pool(with_driver(url), options) as engine:
            yield engine
        return
    with EmbeddedPostgres(settings.cdn_pipeline_var_dir / "postgres") as server:
        server.ensure_database(embedded_database)
        with _pool(server.url(embedded_database), options) as engine:
            yield engine


@contextmanager
def _pool(url: str, options: Mapping[str, Any] | None = None) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, **{"connect_args": _CONNECT_ARGS, "pool_pre_ping": True, **(options or {})})
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
