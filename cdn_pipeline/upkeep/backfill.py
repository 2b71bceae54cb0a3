"""A backfill: opens jobs of the bulk lane for existing source rows whose pictures the catalog does not know, or which
wait for a URL that the row has.

It compares rows with the catalog as discovery does, so what is known is skipped, and what is interrupted goes on where
it was when it is run again. No watermark moves: the sensor's and the night's work is the same before and after.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import BACKFILL_PRIORITY, Collection
from cdn_pipeline.engine.discover import take_in
from cdn_pipeline.sources.app_database import read_profiles
from cdn_pipeline.sources.discovery import Change, ImageReference
from cdn_pipeline.sources.periods import Period, is_of_period, profiles_of_period


@dataclass(slots=True)
class Backfilled:
    """What a backfill has found so far; the same object again and again.

    `shard` is the one that it has come to, in their order; `jobs` counts opened jobs by shard.
    """

    shard: str = ""
    profiles: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    arrived_dead: int = 0  # new ones whose URL has expired: they wait for a fresh one
    jobs: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)  # rows or URLs that cannot be used, by kind

    @property
    def images(self) -> int:
        """The pictures of the period."""
        return self.changes.total()


def backfill(
    source: sa.Engine,
    catalog: sa.Engine,
    collection: Collection,
    period: Period,
    *,
    batch_size: int,
    dry_run: bool = False,
) -> Iterator[Backfilled]:
    """Opens jobs for the pictures of a period; yields what was done after each batch of so many profiles.

    Each batch is one transaction; with `dry_run` it is rolled back.

    Raises:
        SourceSchemaError: the application database lacks a table or column.
    """
    # New jobs have the priority of the backfill; those that are open keep theirs.
    in_bulk = replace(collection, priorities=dict.fromkeys(collection.priorities, BACKFILL_PRIORITY))
    found = Backfilled()
    for ids in profiles_of_period(source, period, page=batch_size):
        batch = read_profiles(source, ids)
        references = [each for each in batch.references if is_of_period(each, period)]
        _take_in(catalog, in_bulk, references, found, dry_run=dry_run)
        found.profiles += batch.profiles.total()
        found.shard = max(batch.profiles, default=found.shard)
        for (_, kind), count in batch.problems.items():
            found.problems[kind] += count
        yield found


def _take_in(
    catalog: sa.Engine,
    collection: Collection,
    references: Sequence[ImageReference],
    found: Backfilled,
    *,
    dry_run: bool,
) -> None:
    work = partial(take_in, collection=collection, references=references)
    if dry_run:
        with catalog.connect() as connection:
            sightings = work(connection)
    else:
        sightings = transaction(catalog, work)
    for sighting in sightings:
        found.changes[sighting.change] += 1
        found.arrived_dead += sighting.change is Change.NEW and not sighting.alive
        found.jobs[sighting.reference.shard] += sighting.opens_job
