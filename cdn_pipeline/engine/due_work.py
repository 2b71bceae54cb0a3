"""Due work: one look at catalog and source that says which shards need a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, transaction
from cdn_pipeline.collections import SHARDS, Collection
from cdn_pipeline.queue.demand import Demand, demand_by_shard
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.leases import release_dead_leases
from cdn_pipeline.queue.refreshes import expire_refreshes, shards_to_refresh
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.queue.watermarks import advance_watermarks, read_watermarks
from cdn_pipeline.sources.changes import SourceChanges, Watermark, changed_shards

# Well before a quiet shard's watermark counts as forgotten, and seldom enough to write next to nothing.
_QUIET = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class DueWork:
    """What is to be done, by shard, at `now` by the catalog's clock."""

    now: datetime
    demands: Mapping[str, Demand]
    changed: frozenset[str]  # shards with source rows that nobody has read yet
    source_read_until: datetime | None  # the latest watermark, by the source's clock
    refreshes: frozenset[str] = frozenset()  # shards with owners that users want fetched again


class DatabaseUnreachableError(Exception):
    """A database does not answer; the message names the variable that says where it is."""


@contextmanager
def _answering(database: str, variable: str) -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
        reason = str(error.orig).partition("\n")[0]
        raise DatabaseUnreachableError(f"{database} ({variable}) does not answer: {reason}") from error


catalog_answers = partial(_answering, "the catalog", "CATALOG_DATABASE_URL")
source_answers = partial(_answering, "the application database", "SOURCE_DATABASE_URL")


def look_for_due_work(source: sa.Engine, catalog: sa.Engine, collection: Collection) -> DueWork:
    """Looks at all shards. What dead runs had in hand becomes due again; refreshes that nobody came to are closed.

    Watermarks of shards in which nothing changed follow the source's clock, so that no look has to go far back.

    Raises:
        DatabaseUnreachableError: the catalog or the source does not answer.
        SourceSchemaError: the source lacks a table or column.
    """
    with catalog_answers():
        work, watermarks = transaction(catalog, partial(_look_at_queue, collection=collection))
    with source_answers():
        changes = changed_shards(source, watermarks)
    if quiet := _quiet_marks(watermarks, changes):
        with catalog_answers():
            transaction(catalog, partial(advance_watermarks, collection=collection, marks=quiet))
    return replace(work, changed=changes.changed)


def _look_at_queue(connection: sa.Connection, collection: Collection) -> tuple[DueWork, Mapping[str, Watermark]]:
    release_dead_leases(connection, SHARDS)
    expire_refreshes(connection)
    watermarks = read_watermarks(connection, collection)
    work = DueWork(
        now=catalog_time(connection),
        demands=demand_by_shard(connection, Selection(collection, frozenset(Stage))),
        changed=frozenset(),
        source_read_until=max((mark.scanned_at for mark in watermarks.values()), default=None),
        refreshes=shards_to_refresh(connection, collection),
    )
    return work, watermarks


def _quiet_marks(watermarks: Mapping[str, Watermark], changes: SourceChanges) -> Mapping[str, Watermark]:
    return {
        shard: changes.marks[shard]
        for shard in watermarks.keys() - changes.changed
        if watermarks[shard].scanned_at < changes.marks[shard].scanned_at - _QUIET
    }
