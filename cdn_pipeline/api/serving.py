"""What routes work with: settings, the catalog through pools of its own, the collection, and what measures it all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import sqlalchemy as sa
from fastapi import Depends, Request

from cdn_pipeline.catalog.sessions import limit_statements, open_catalog, transaction
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.observe.monitor import Monitor, monitoring
from cdn_pipeline.settings import Settings

_OPERATORS_STATEMENT_SECONDS = 60  # holding a million jobs takes some of them
_OPERATORS_CONNECTIONS = 2
_OPERATORS_PATIENCE_SECONDS = 3  # for one of them, as everybody else

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Serving:
    """Opened once per process. `catalog` has limits on connections, on waiting for one and on statements.

    `operators` is the catalog on connections of its own, with more time.
    """

    settings: Settings
    catalog: sa.Engine
    operators: sa.Engine
    collection: Collection
    monitor: Monitor

    def read(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Runs a reading outside of a transaction, once more if the pool's connection had died meanwhile."""
        reader = self.catalog.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with reader.connect() as connection:
                return work(connection)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with reader.connect() as connection:
            return work(connection)

    def write(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Runs a transaction."""
        return transaction(self.catalog, work)

    def administer(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Runs an operator's transaction, of which a statement may take a minute."""
        return transaction(self.operators, work)


@contextmanager
def open_serving(settings: Settings) -> Iterator[Serving]:
    """Opens the catalog for the API.

    Raises:
        CatalogOutdatedError: the schema or the base URL written into it is not this code's.
    """
    with (
        open_catalog(settings, serving=True) as catalog,
        _operators_engine(catalog) as operators,
        monitoring(settings, catalog) as monitor,
    ):
        yield Serving(settings, catalog, operators, INSTAGRAM, monitor)


@contextmanager
def _operators_engine(catalog: sa.Engine) -> Iterator[sa.Engine]:
    engine = sa.create_engine(
        catalog.url,
        pool_size=_OPERATORS_CONNECTIONS,
        max_overflow=0,
        pool_timeout=_OPERATORS_PATIENCE_SECONDS,
        pool_pre_ping=True,
        connect_args={"connect_timeout": _OPERATORS_PATIENCE_SECONDS, "application_name": "cdn_pipeline operators"},
    )
    limit_statements(engine, _OPERATORS_STATEMENT_SECONDS)
    try:
        yield engine
    finally:
        engine.dispose()


async def _of_app(request: Request) -> Serving:  # async, like all dependencies: others wait for a thread
    serving: Serving = request.app.state.serving
    return serving


Served = Annotated[Serving, Depends(_of_app)]
"""A route's parameter of this type is what the process has opened."""
