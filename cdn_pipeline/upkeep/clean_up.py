"""Clean-up: what nobody needs any more leaves stores and catalog.

Every run may be killed and repeated: what is done is not found again. A dry run does the same to the catalog and rolls
it back, and leaves the stores alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, transaction
from cdn_pipeline.collections import SHARDS, Collection
from cdn_pipeline.queue.housekeeping import (
    archive_failed_jobs,
    delete_old_jobs,
    delete_old_probes,
    delete_old_refreshes,
    delete_old_runs,
    delete_superseded_renditions,
)
from cdn_pipeline.queue.leases import release_dead_leases
from cdn_pipeline.queue.references import forget_removed, lock_removal, mark_unreferenced, sole_remover
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.erase import Eraser
from cdn_pipeline.upkeep.removal import remove_half_removed, remove_marked, remove_unreferenced
from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline.upkeep.survey import Survey, survey_originals, survey_renditions

LIMIT = 10_000  # of each kind in one run: minutes; the next run goes on
ERASURES = 20  # each may wait for runs for two minutes
BATCH = 500  # rows that nobody settles beside: 10 ms
TEMPORARY_KEPT = timedelta(days=1)  # nothing is written for longer than minutes
FEW = 100  # unknown objects that may outnumber the known ones

_T = TypeVar("_T")


class Kind(StrEnum):
    """What clean-up takes, in its order."""

    DEAD_LEASES = "dead leases released"
    HALF_REMOVED = "objects left by a clean-up that was killed"
    SUPERSEDED = "superseded renditions"
    RENDITIONS = "renditions that the catalog does not know"
    ORIGINALS = "originals that nothing refers to"
    TEMPORARY = "temporary files"
    FAILED_JOBS = "failed jobs archived"
    OLD_JOBS = "old jobs"
    OLD_RUNS = "old runs"
    OLD_PROBES = "old delivery probes"
    OLD_REFRESHES = "old refreshes"
    ERASURES = "interrupted erasures gone on with"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """How many of a kind are cleaned so far, and their bytes in the stores; `is_all` unless more are left."""

    kind: Kind
    count: int
    size: int | None = None
    is_all: bool = True

    def after(self, earlier: "Cleaned | None") -> "Cleaned":
        """With what an earlier run has cleaned of it."""
        if earlier is None:
            return self
        size = None if self.size is None else self.size + (earlier.size or 0)
        return replace(self, count=self.count + earlier.count, size=size)


class WrongCatalogError(Exception):
    """Most objects of a store are unknown to this catalog: the one of another store, or one that lost its rows."""


def grace_of(settings: Settings) -> timedelta:
    """For how long superseded renditions are kept."""
    return timedelta(days=settings.superseded_kept_days)


@dataclass(frozen=True, slots=True)
class CleanUp:
    """One run over catalog and stores; `limit` bounds each kind, `force` removes even most objects of a store.

    `eraser` goes on with erasures that were interrupted; without one they stay as they are.
    """

    catalog: sa.Engine
    collection: Collection
    stores: Stores
    grace: timedelta  # for which superseded renditions are kept
    limit: int = LIMIT
    dry_run: bool = True
    force: bool = False
    eraser: Eraser | None = None

    def run(self) -> Iterator[Cleaned]:
        """Cleans kind by kind; yields how far it is, more than once where a kind takes longer.

        Raises:
            StoreUnavailable: a store does not do what it is asked; the next run goes on.
            WrongCatalogError: nothing is removed from that store.
        """
        yield self._in_catalog(Kind.DEAD_LEASES, lambda connection: release_dead_leases(connection, SHARDS))
        yield from self._half_removed()
        yield from self._superseded()
        yield from self._unknown_renditions()
        yield from self._unknown_originals()
        yield from self._temporary()
        yield self._in_catalog(Kind.FAILED_JOBS, lambda connection: archive_failed_jobs(connection, self.limit))
        yield self._in_catalog(Kind.OLD_JOBS, lambda connection: delete_old_jobs(connection, self.limit))
        yield self._in_catalog(Kind.OLD_RUNS, lambda connection: delete_old_runs(connection, self.limit))
        yield self._in_catalog(Kind.OLD_PROBES, lambda connection: delete_old_probes(connection, self.limit))
        yield self._in_catalog(Kind.OLD_REFRESHES, lambda connection: delete_old_refreshes(connection, self.limit))
        self._transaction(forget_removed)
        if self.eraser is not None:
            yield self._interrupted_erasures(self.eraser)

    def run_for(self, seconds: float) -> Iterator[Cleaned]:
        """Runs again and again until nothing is left, or that time is over; yields what all of them have cleaned.

        The last one is not interrupted. A dry run is one run.

        Raises:
            StoreUnavailable, WrongCatalogError: as `run`.
        """
        until = time.monotonic() + seconds
        before: dict[Kind, Cleaned] = {}
        while True:
            latest: dict[Kind, Cleaned] = {}
            for cleaned in self.run():
                latest[cleaned.kind] = cleaned
                yield cleaned.after(before.get(cleaned.kind))
            is_all = all(each.is_all for each in latest.values())
            is_stuck = not any(each.count for each in latest.values())
            if self.dry_run or is_all or is_stuck or time.monotonic() >= until:
                return
            before = {kind: each.after(before.get(kind)) for kind, each in latest.items()}

    def _interrupted_erasures(self, eraser: Eraser) -> Cleaned:
        """What is wrong with one is in its `problem`, and a check of its own tells of it."""
        limit = min(ERASURES, self.limit)
        found = eraser.interrupted(limit)
        if not self.dry_run:
            for erasure_id in found:
                eraser.go_on(erasure_id)
        return Cleaned(Kind.ERASURES, len(found), is_all=len(found) < limit)

    def _in_catalog(self, kind: Kind, work: Callable[[sa.Connection], int]) -> Cleaned:
        count = self._transaction(work)
        return Cleaned(kind, count, is_all=count < self.limit)

    def _transaction(self, work: Callable[[sa.Connection], _T]) -> _T:
        if not self.dry_run:
            return transaction(self.catalog, work)
        with self.catalog.connect() as connection:
            return work(connection)  # and is rolled back

    def _half_removed(self) -> Iterator[Cleaned]:
        if not self.dry_run:
            count = remove_half_removed(self.catalog, self.stores, self.limit)
            yield Cleaned(Kind.HALF_REMOVED, count, is_all=count < self.limit)

    def _superseded(self) -> Iterator[Cleaned]:
        """Rows and marks in one transaction, then the objects: a row that had lost its object might be made current."""
        count = size = 0
        is_all = False
        while count < self.limit and not is_all:
            batch = self.limit if self.dry_run else min(BATCH, self.limit - count)
            with sole_remover(self.catalog) as remover:
                deleted, marked = self._transaction(partial(self._drop_superseded, limit=batch))
                if not self.dry_run:
                    remove_marked(self.catalog, self.stores, marked, remover)
            count += len(deleted)
            size += sum(file_size for path, file_size in dict(deleted).items() if path in marked)
            is_all = len(deleted) < batch
            yield Cleaned(Kind.SUPERSEDED, count, size, is_all)

    def _drop_superseded(self, connection: sa.Connection, limit: int) -> tuple[list[tuple[str, int]], set[str]]:
        lock_removal(connection)
        deleted = delete_superseded_renditions(connection, self.grace, limit)
        return deleted, mark_unreferenced(connection, paths=[path for path, _ in deleted])

    def _unknown_renditions(self) -> Iterator[Cleaned]:
        with self.catalog.connect() as connection:
            survey = asyncio.run(survey_renditions(connection, self.stores.renditions, self.collection, self.limit))
        self._require_catalog_of(survey, self.stores.renditions.url)
        yield from self._remove_unknown(
            Kind.RENDITIONS,
            survey,
            lambda paths: remove_unreferenced(self.catalog, self.stores, paths=paths),
        )

    def _unknown_originals(self) -> Iterator[Cleaned]:
        with self.catalog.connect() as connection:
            survey = asyncio.run(survey_originals(connection, self.stores.originals, self.limit))
        self._require_catalog_of(survey, self.stores.originals.url)
        yield from self._remove_unknown(
            Kind.ORIGINALS,
            survey,
            lambda originals: remove_unreferenced(self.catalog, self.stores, originals=originals),
        )

    def _require_catalog_of(self, survey: Survey, url: str) -> None:
        few = FEW if survey.known else 0
        if survey.old > max(survey.known, few) and not self.force:
            raise WrongCatalogError(
                f"{survey.old} objects of {url} are unknown to this catalog, which knows {survey.known}: is it the "
                "catalog of this store? One that was lost is made again by `cdn-pipeline rebuild-catalog`. If they are "
                "to go all the same: `cdn-pipeline clean-up --delete --force`"
            )

    def _remove_unknown(self, kind: Kind, survey: Survey, remove: Callable[[list[str]], set[str]]) -> Iterator[Cleaned]:
        if self.dry_run or not survey.unknown:
            yield Cleaned(kind, survey.old, survey.old_bytes)
            return
        references, removed = list(survey.unknown), set[str]()
        for start in range(0, len(references), BATCH):
            removed |= remove(references[start : start + BATCH])
            size = sum(survey.unknown[reference] for reference in removed)
            yield Cleaned(kind, len(removed), size, is_all=survey.old == len(references))

    def _temporary(self) -> Iterator[Cleaned]:
        with self.catalog.connect() as connection:
            before = catalog_time(connection) - TEMPORARY_KEPT
        stores = (self.stores.renditions, self.stores.originals)
        found = [
            listed for store in stores for listed in asyncio.run(store.remove_temporary(before, dry_run=self.dry_run))
        ]
        yield Cleaned(Kind.TEMPORARY, len(found), sum(listed.size for listed in found))
