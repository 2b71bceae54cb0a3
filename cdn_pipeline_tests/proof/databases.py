"""The catalog under test, and the ways in which the machine talks to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline_tests.proof import clock
from cdn_pipeline_tests.queue.catalogs import refuse_illegal_transitions


@dataclass(frozen=True, slots=True)
class Catalog:
    """A catalog on a stopped clock that refuses every transition that is not in the state tables."""

    transactions: sa.Engine
    statements: sa.Engine  # every statement commits: a third of the round trips
    sessions: sa.Engine  # what a run holds is its own: the end of one must not empty a pool


@contextmanager
def open_catalog(url: str) -> Iterator[Catalog]:
    """Makes an empty database the catalog."""
    engine, sessions = sa.create_engine(url), sa.create_engine(url, poolclass=sa.NullPool)
    clock.install(engine)
    migrate(engine, "https://cdn.example")
    refuse_illegal_transitions(engine)
    yield Catalog(engine, engine.execution_options(isolation_level="AUTOCOMMIT"), sessions)
    engine.dispose()
