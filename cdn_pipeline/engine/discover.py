"""Discovery: source rows in, changed images and their jobs in the catalog."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.intake import known_images, lock_images, record
from cdn_pipeline.sources.app_database import SourceBatch, read_references
from cdn_pipeline.sources.discovery import Change, ImageKey, ImageReference, Sighting, compare

MAX_SAMPLES = 20  # of problems, per shard: they go into Dagster's storage


@dataclass(slots=True)
class Discovered:
    """What discovery found in one shard."""

    shard: str
    profiles: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    arrived_dead: int = 0  # their URL had expired before we saw it
    problems: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)  # of problems, in words

    @property
    def images(self) -> int:
        """Images that the source shows."""
        return sum(self.changes.values())


def discover(
    source: sa.Engine, catalog: sa.Engine, collection: Collection, shards: Sequence[str]
) -> Iterator[Discovered]:
    """Compares the source rows of a contiguous range of shards with the catalog; yields every shard when it is done.

    One range scan, batch by batch; every batch is one transaction, so what is interrupted is simply found again.
    """
    found = {shard: Discovered(shard) for shard in shards}
    done = 0
    for batch in read_references(source, shards[0], shards[-1]):
        now = datetime.now(UTC)
        sightings = transaction(catalog, partial(_take_in, collection=collection, batch=batch, now=now))
        _count(found, batch, sightings)
        reached = max(batch.profiles)
        while shards[done] < reached:
            yield found.pop(shards[done])
            done += 1
    yield from (found[shard] for shard in shards[done:])


def _take_in(connection: sa.Connection, collection: Collection, batch: SourceBatch, now: datetime) -> list[Sighting]:
    sightings = _compare_all(connection, _without_repeats(batch.references), now)
    moved = [sighting.reference for sighting in sightings if sighting.change in (Change.CHANGED, Change.RESIGNED)]
    lock_images(connection, [reference.key for reference in moved])
    compared_again = {sighting.reference.key: sighting for sighting in _compare_all(connection, moved, now)}
    sightings = [compared_again.get(sighting.reference.key, sighting) for sighting in sightings]
    record(connection, collection, sightings)
    return sightings


def _compare_all(connection: sa.Connection, references: Sequence[ImageReference], now: datetime) -> list[Sighting]:
    known = known_images(connection, [reference.key for reference in references]) if references else {}
    return [compare(reference, known.get(reference.key), now) for reference in references]


def _without_repeats(references: Sequence[ImageReference]) -> list[ImageReference]:
    """One reference per image: where rows repeat one, the latest observation."""
    latest: dict[ImageKey, ImageReference] = {}
    for reference in references:
        if reference.key not in latest or latest[reference.key].observed_at < reference.observed_at:
            latest[reference.key] = reference
    return list(latest.values())


def _count(found: dict[str, Discovered], batch: SourceBatch, sightings: Sequence[Sighting]) -> None:
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
        shard_found.arrived_dead += sighting.change is Change.NEW and not sighting.opens_job
