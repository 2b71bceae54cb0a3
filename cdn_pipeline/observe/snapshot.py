"""The catalog at one moment, with the runs that are dead in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from cdn_pipeline.queue.leases import dead_runs


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A connection, all of whose queries see the same rows; `dead` are the ids of runs whose process is gone."""

    connection: sa.Connection
    dead: frozenset[str]


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[Snapshot]:
    """The catalog as it is now, to be read only."""
    with engine.connect() as connection:
        # Locks are read live. Asked within the snapshot, a run that has ended since would have no lock any more and not
        # have ended yet: dead. Asked before, what is dead and not ended in the snapshot is dead indeed.
        dead = frozenset(dead_runs(connection))
        connection.rollback()
        yield Snapshot(connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True), dead)
