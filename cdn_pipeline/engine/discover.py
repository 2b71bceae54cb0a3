"""Discovery: source rows in, changed images and their jobs in the catalog."""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import groupby

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.intake import known_images, lock_images, record_admitted
from cdn_pipeline.queue.presence import mark_removed, mark_sighted, unsighted_images
from cdn_pipeline.queue.tombstones import Candidate, kept_out
from cdn_pipeline.queue.watermarks import advance_watermarks, read_watermarks
from cdn_pipeline.sources.app_database import PROFILES_PER_BATCH, SourceBatch, read_profiles, read_references
from cdn_pipeline.sources.changes import Watermark, marks_of_now, missing_rows, read_changed_references
from cdn_pipeline.sources.discovery import MOVED, Change, ImageKey, ImageReference, KnownImage, Sighting, compare

MAX_SAMPLES = 20  # of problems, per shard: they go into Dagster's storage


@dataclass(slots=True)
class Discovered:
    """What discovery found in one shard, in the rows that it read."""

    shard: str
    every_row: bool = True  # else only what has changed was read
    profiles: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    arrived_dead: int = 0  # their URL had expired before we saw it
    removed: int = 0  # their source row was found missing, for the first time
    problems: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)  # of problems, in words

    @property
    def images(self) -> int:
        """Images that the source shows."""
        return sum(self.changes.values())


def discover(
    source: sa.Engine, catalog: sa.Engine, collection: Collection, shards: Sequence[str], *, changed_only: bool = False
) -> Iterator[Discovered]:
    """Compares source rows of a contiguous range of shards with the catalog; yields every shard when it is done.

    All rows, and then images are noticed whose row is gone. With `changed_only` the rows that are new since the shard's
    watermark; all rows of a shard that has none. A carousel's child is gone when its post is.

    One pass in the order of shards, batch by batch; every batch is one transaction, so what is interrupted is simply
    found again: a shard's watermark moves when the shard is done.
    """
    marks = marks_of_now(source)  # before anything is read: what changes meanwhile is for the next time
    known = transaction(catalog, partial(read_watermarks, collection=collection)) if changed_only else {}
    for is_known, adjacent in groupby(shards, key=known.__contains__):
        part = list(adjacent)
        scan = _Scan(source, catalog, collection, marks, every_row=not is_known)
        if is_known:
            batches = read_changed_references(source, {shard: known[shard] for shard in part})
        else:
            batches = read_references(source, part[0], part[-1])
        yield from scan.run(part, batches)


@dataclass(frozen=True, slots=True)
class _Scan:
    """One pass over the source rows of adjacent shards."""

    source: sa.Engine
    catalog: sa.Engine
    collection: Collection
    marks: Mapping[str, Watermark]
    every_row: bool

    def run(self, shards: Sequence[str], batches: Iterable[SourceBatch]) -> Iterator[Discovered]:
        began = transaction(self.catalog, catalog_time)
        found = {shard: Discovered(shard, every_row=self.every_row) for shard in shards}
        for batch in batches:
            sightings = _take_in_rows(self.catalog, self.collection, batch)
            _count(found, batch, sightings, began)
            reached = max(batch.profiles)
            yield from self._finish([found.pop(shard) for shard in list(found) if shard < reached], began)
        yield from self._finish(list(found.values()), began)

    def _finish(self, done: Sequence[Discovered], began: datetime) -> Sequence[Discovered]:
        """All shards that the scan is past, together: where there are few rows, one batch passes many."""
        if not done:
            return done
        shards = [found.shard for found in done]
        if self.every_row:
            removed = self._notice_removed(shards, began)
            for found in done:
                found.removed = removed[found.shard]
        marks = {shard: self.marks[shard] for shard in shards}
        advance = partial(advance_watermarks, collection=self.collection, marks=marks, every_row=self.every_row)
        transaction(self.catalog, advance)
        return done

    def _notice_removed(self, shards: Sequence[str], began: datetime) -> Counter[str]:
        """Asks the source for the rows of images that were not sighted: most are posts that left the latest twelve."""
        removed: Counter[str] = Counter()
        with self.catalog.connect() as connection:
            for images in unsighted_images(connection, self.collection, shards, began):
                missing = missing_rows(self.source, set(images.values()))
                gone = [asset_id for asset_id, row in images.items() if row in missing]
                removed += transaction(self.catalog, partial(mark_removed, asset_ids=gone, since=began))
        return removed


def discover_owners(source: sa.Engine, catalog: sa.Engine, collection: Collection, owner_ids: Sequence[str]) -> None:
    """Compares the source rows of these owners with the catalog, whatever was read before."""
    for start in range(0, len(owner_ids), PROFILES_PER_BATCH):
        some = [uuid.UUID(owner_id) for owner_id in owner_ids[start : start + PROFILES_PER_BATCH]]
        _take_in_rows(catalog, collection, read_profiles(source, some))


def _take_in_rows(catalog: sa.Engine, collection: Collection, batch: SourceBatch) -> list[Sighting]:
    work = partial(take_in, collection=collection, references=batch.references, of_rows=True)
    sightings = transaction(catalog, work)
    untouched = [sighting.reference.key for sighting in sightings if sighting.change not in MOVED]
    if untouched:
        transaction(catalog, partial(mark_sighted, keys=untouched))
    return sightings


def take_in(
    connection: sa.Connection, collection: Collection, references: Sequence[ImageReference], *, of_rows: bool = False
) -> list[Sighting]:
    """Compares references with the catalog and writes what has changed, within the caller's transaction.

    With `of_rows`, references of source rows, the images that are overwritten are marked as sighted by the way; all
    others are left to `mark_sighted`.
    """
    now = catalog_time(connection)
    admitted = _admitted(connection, collection, _without_repeats(references))
    known = _known(connection, admitted)
    sightings = _look_again(connection, _compare_all(admitted, known, now), known, now)
    # Whom `_admitted` let in cannot be erased before this transaction ends: it holds the gate open, and a tombstone is
    # set with the gate closed. An erasure that comes now waits, and then finds what is written here.
    record_admitted(connection, collection, sightings, of_rows=of_rows)
    return sightings


def _look_again(
    connection: sa.Connection, sightings: list[Sighting], known: Mapping[ImageKey, KnownImage], now: datetime
) -> list[Sighting]:
    """Locks what is about to be overwritten, and compares again what somebody else has written since the first look.

    What else is known of an image, whether it waits for a fresh URL, is asked again where its jobs are opened.
    """
    moved = [sighting.reference for sighting in sightings if sighting.change in MOVED]
    versions = lock_images(connection, [reference.key for reference in moved])
    overtaken = [each for each in moved if versions.get(each.key) != known[each.key].version]
    if not overtaken:
        return sightings
    compared_again = _compare_all(overtaken, _known(connection, overtaken), now)
    by_key = {sighting.reference.key: sighting for sighting in compared_again}
    return [by_key.get(sighting.reference.key, sighting) for sighting in sightings]


def _admitted(
    connection: sa.Connection, collection: Collection, references: Sequence[ImageReference]
) -> list[ImageReference]:
    """Without erased images, which would be counted as new at every look."""
    erased = kept_out(connection, collection, [Candidate.of(reference) for reference in references])
    return [reference for reference in references if reference.key not in erased]


def _known(connection: sa.Connection, references: Sequence[ImageReference]) -> dict[ImageKey, KnownImage]:
    return known_images(connection, [reference.key for reference in references]) if references else {}


def _compare_all(
    references: Sequence[ImageReference], known: Mapping[ImageKey, KnownImage], now: datetime
) -> list[Sighting]:
    return [compare(reference, known.get(reference.key), now) for reference in references]


def _without_repeats(references: Sequence[ImageReference]) -> list[ImageReference]:
    """One reference per image: where rows repeat one, the latest observation."""
    latest: dict[ImageKey, ImageReference] = {}
    for reference in references:
        if reference.key not in latest or latest[reference.key].observed_at < reference.observed_at:
            latest[reference.key] = reference
    return list(latest.values())


def _count(found: dict[str, Discovered], batch: SourceBatch, sightings: Sequence[Sighting], began: datetime) -> None:
    for shard, profiles in batch.profiles.items():
        found[shard].profiles += profiles
    for (shard, kind), count in batch.problems.items():
        found[shard].problems[kind] += count
    for shard, words in batch.samples:
        if len(found[shard].samples) < MAX_SAMPLES:
            found[shard].samples.append(words)
    for sighting in sightings:
        shard_found = found[sighting.reference.shard]
        shard_found.changes[sighting.change] += 1
        expires_at = sighting.best.expires_at
        shard_found.arrived_dead += sighting.change is Change.NEW and expires_at is not None and expires_at <= began
