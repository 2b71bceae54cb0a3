"""Rebuilding the catalog from the stores: after it was lost, or when an old backup stands beside newer stores.

In this order: tombstones first, and what they keep out leaves a backup again; then renditions, image by image; then
originals that nothing was made of yet; then catalog against stores, with jobs for what the stores have lost. Each page
of a listing is one transaction, and what the catalog knows already costs no request, so a rebuild that was killed goes
on where it was. Nothing is downloaded, and no object is written or removed.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.erasures import note_lifted
from cdn_pipeline.queue.references import end_old_marks, sole_remover, unreferenced_originals
from cdn_pipeline.queue.restoration import (
    FoundImage,
    KnownPath,
    known_paths,
    reopen_erasures,
    restore_images,
    take_down_erased,
)
from cdn_pipeline.queue.tombstones import lifted_since, remove_tombstones
from cdn_pipeline.queue.watermarks import forget_watermarks
from cdn_pipeline.store.keys import ORIGINALS, path_of, sha256_of
from cdn_pipeline.store.objects import ListedObject, ObjectStore
from cdn_pipeline.upkeep.inventory import (
    Undescribed,
    describe,
    image_pages,
    images_of,
    images_of_originals,
    with_originals,
)
from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline.upkeep.tombstones import bring_all_back, read_copies
from cdn_pipeline.upkeep.verify import Verification

MAX_SAMPLES = 20
# A rendition that was put again so long after the catalog had put it away became current after the backup: more than
# the clocks of store and catalog are apart, and less than any picture is shown before it is replaced and comes back.
_CLOCKS_APART = timedelta(minutes=5)

_T = TypeVar("_T")


class _Transact(Protocol):
    """Runs work in a transaction."""

    def __call__(self, work: Callable[[sa.Connection], _T], /) -> _T: ...


class DamagedTombstoneError(Exception):
    """A tombstone's copy cannot be read: nothing may be brought back before somebody has looked at it."""


class Count(StrEnum):
    """What a rebuild counts."""

    TOMBSTONES = "tombstones set again"
    LIFTED = "erasures that were lifted since the backup, and keep nothing out any more"
    TAKEN_DOWN = "images that were erased since the backup, taken down again"
    LISTED = "objects listed"
    NEW = "images that the catalog did not have"
    CHANGED = "images that show what the stores have now"
    RENDITIONS = "renditions that the catalog did not have"
    KEPT_OUT = "images that a tombstone keeps out"
    IN_REMOVAL = "images that clean-up has in hand: rebuild again"
    UNDESCRIBED = "objects that do not say what they are"
    MISSING = "objects that the catalog names and the stores have lost or damaged"
    REPAIRS = "images with a job that makes what is missing"


@dataclass(slots=True)
class Rebuilt:
    """How far a rebuild is; `undescribed` names some of the objects that it can make nothing of."""

    counts: Counter[Count] = field(default_factory=Counter)
    undescribed: list[Undescribed] = field(default_factory=list)

    def note_undescribed(self, objects: Sequence[Undescribed]) -> None:
        """Counts them, and keeps the first few."""
        self.counts[Count.UNDESCRIBED] += len(objects)
        self.undescribed += objects[: MAX_SAMPLES - len(self.undescribed)]


@dataclass(frozen=True, slots=True)
class Rebuild:
    """One rebuild of a collection's part of the catalog.

    A dry run does the same and rolls back each transaction, so that nobody waits for it. It sets no tombstones and
    lifts none, so it counts erased images as well, and those that were lifted as kept out.
    """

    catalog: sa.Engine
    collection: Collection
    stores: Stores
    dry_run: bool = True

    def run(self) -> Iterator[Rebuilt]:
        """Yields how far it is, the same object as it grows, after every page.

        Raises:
            DamagedTombstoneError: nothing was brought back.
            StoreUnavailable: a store does not answer; the next rebuild goes on.
            WrongStoreError: all is brought back, and of what the catalog names the stores have lost most.
        """
        rebuilt = Rebuilt()
        self._respect_tombstones(rebuilt)
        yield rebuilt
        with asyncio.Runner() as runner:
            since = self._transact(catalog_time)
            listing = _Listing(self.collection, self.stores, self._transact, since, rebuilt, self.dry_run)
            for pages in (listing.renditions(), listing.originals()):
                while runner.run(_next(pages)):
                    yield rebuilt
        yield from self._verify(rebuilt)

    def _transact(self, work: Callable[[sa.Connection], _T]) -> _T:
        if not self.dry_run:
            return transaction(self.catalog, work)
        with self.catalog.connect() as connection:
            return work(connection)  # and is rolled back

    def _respect_tombstones(self, rebuilt: Rebuilt) -> None:
        looked_at = self._transact(catalog_time)
        try:
            copies = read_copies(self.stores.originals)
        except ValueError as error:
            raise DamagedTombstoneError(f"{error}. Mend or remove it in {self.stores.originals.url}") from error
        if not self.dry_run:
            rebuilt.counts[Count.TOMBSTONES] = bring_all_back(self.catalog, copies)
            self._transact(partial(forget_watermarks, collection=self.collection))
            with sole_remover(self.catalog):
                self._transact(end_old_marks)

        # An empty store has lost its copies, or is another one: it tells nothing of what was lifted.
        is_ours = bool(copies) or asyncio.run(_has_originals(self.stores.originals))

        def follow(connection: sa.Connection) -> tuple[int, int]:
            lifted = lifted_since(connection, copies, looked_at) if is_ours else []
            note_lifted(connection, lifted)
            for erasure_id in lifted:
                remove_tombstones(connection, erasure_id)
            return len(lifted), take_down_erased(connection, self.collection)

        rebuilt.counts[Count.LIFTED], rebuilt.counts[Count.TAKEN_DOWN] = self._transact(follow)

    def _verify(self, rebuilt: Rebuilt) -> Iterator[Rebuilt]:
        """What the catalog names and the stores have lost; a dry run asks the catalog as it is."""
        verification = Verification(self.catalog, self.collection, self.stores.by_part, repair=not self.dry_run)
        before, parts = rebuilt.counts[Count.REPAIRS], {}
        for verified in verification.run():
            parts[verified.part] = verified
            rebuilt.counts[Count.MISSING] = sum(each.wrong for each in parts.values())
            rebuilt.counts[Count.REPAIRS] = before + sum(each.repaired for each in parts.values())
            yield rebuilt


async def _has_originals(store: ObjectStore) -> bool:
    async for page in store.pages(ORIGINALS):
        if page:
            return True
    return False


async def _next(pages: AsyncIterator[None]) -> bool:
    """Whether there was another page."""
    async for _ in pages:
        return True
    return False


@dataclass(frozen=True, slots=True)
class _Listing:
    """Takes in what the stores have, page by page; `since` is the catalog's time before they were looked at."""

    collection: Collection
    stores: Stores
    transact: _Transact
    since: datetime
    rebuilt: Rebuilt
    dry_run: bool
    _told: set[str] = field(default_factory=set)  # a dry run's originals, whose rows were rolled back: 25 MB of 200,000

    async def renditions(self) -> AsyncIterator[None]:
        """Images whose renditions the catalog does not know, or knows as put away before they were put again."""
        async for page in image_pages(self.stores.renditions, self.collection):
            self.rebuilt.counts[Count.LISTED] += sum(map(len, page))
            paths = [path_of(entry.key) for image in page for entry in image]
            known = self.transact(partial(known_paths, paths=paths))
            unknown = [image for image in page if any(_is_news(entry, known) for entry in image)]
            entries = [entry for image in unknown for entry in image]
            described, undescribed = await describe(self.stores.renditions, self.collection, entries)
            self.rebuilt.note_undescribed(undescribed)
            put_away = {path_of(entry.key) for entry in entries if _is_put_away(entry, known)}
            images = images_of(described, self.collection, not_current=put_away)
            self._restore(await with_originals(self.stores.originals, images))
            yield

    async def originals(self) -> AsyncIterator[None]:
        """Originals that nothing refers to: of images that were never encoded, or left over."""
        async for page in self.stores.originals.pages(ORIGINALS):
            self.rebuilt.counts[Count.LISTED] += len(page)
            listed = {sha256: entry for entry in page if (sha256 := sha256_of(entry.key)) and sha256 not in self._told}
            unknown = self.transact(partial(unreferenced_originals, sha256s=list(listed)))
            entries = [listed[sha256] for sha256 in unknown]
            images, undescribed = await images_of_originals(self.stores.originals, self.collection, entries)
            self.rebuilt.note_undescribed(undescribed)
            self._restore(images)
            yield

    def _restore(self, images: Sequence[FoundImage]) -> None:
        restored = self.transact(partial(restore_images, collection=self.collection, images=images, since=self.since))
        if self.dry_run:
            self._told.update(_originals_of(image for image in images if image not in restored.kept_out))
        if restored.kept_out:
            self.transact(partial(reopen_erasures, collection=self.collection, images=restored.kept_out))
        self.rebuilt.counts.update(
            {
                Count.NEW: restored.new,
                Count.CHANGED: restored.changed,
                Count.RENDITIONS: restored.renditions,
                Count.KEPT_OUT: len(restored.kept_out),
                Count.IN_REMOVAL: restored.in_removal,
                Count.REPAIRS: restored.repairs,
            }
        )


def _originals_of(images: Iterable[FoundImage]) -> set[str]:
    """Of all their pictures, the one that is shown and those before."""
    return {
        sha256
        for image in images
        for sha256 in (image.original.sha256, *(found.rendition.original_sha256 for found in image.renditions))
    }


def _is_news(entry: ListedObject, known: Mapping[str, KnownPath]) -> bool:
    told = known.get(path_of(entry.key))
    return told is None or (told.state != "current" and not _is_put_away(entry, known))


def _is_put_away(entry: ListedObject, known: Mapping[str, KnownPath]) -> bool:
    told = known.get(path_of(entry.key))
    return told is not None and told.state != "current" and entry.last_modified <= told.since + _CLOCKS_APART
