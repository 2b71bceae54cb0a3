"""A survey of a store: which of its objects the catalog does not know."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.references import unreferenced_originals, unreferenced_paths
from cdn_pipeline.store.keys import ORIGINALS, path_of, sha256_of
from cdn_pipeline.store.objects import ListedObject, ObjectStore

# A run's objects are unknown until it has settled: a minute, or as long as an outage of the catalog lasts. The rest of
# the week is for operators: beside the backup of a catalog, what was published since is unknown.
UNKNOWN_KEPT = timedelta(days=7)


@dataclass(slots=True)
class Survey:
    """What a store has. `unknown` are the first few old ones, by path or SHA-256, and their bytes."""

    known: int = 0
    young: int = 0  # unknown, and too young to judge
    old: int = 0  # unknown for longer than a run may take
    old_bytes: int = 0
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def unknown_count(self) -> int:
        """All that the catalog does not know, however young."""
        return self.young + self.old


async def survey_renditions(
    connection: sa.Connection, store: ObjectStore, collection: Collection, keep: int, age: timedelta = UNKNOWN_KEPT
) -> Survey:
    """Looks at every object under the collection's prefix; notes the first `keep` of those that the catalog lacks.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    return await _survey(connection, store, collection.key_prefix, path_of, unreferenced_paths, keep, age)


async def survey_originals(
    connection: sa.Connection, store: ObjectStore, keep: int, age: timedelta = UNKNOWN_KEPT
) -> Survey:
    """Looks at every original; notes the first `keep` of those that nothing refers to.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    return await _survey(connection, store, ORIGINALS, sha256_of, unreferenced_originals, keep, age)


async def _survey(
    connection: sa.Connection,
    store: ObjectStore,
    prefix: str,
    reference_of: Callable[[str], str | None],
    unreferenced: Callable[[sa.Connection, Sequence[str]], set[str]],
    keep: int,
    age: timedelta,
) -> Survey:
    """What has another form of key is not ours, and not counted."""
    survey, before = Survey(), catalog_time(connection) - age
    async for page in store.pages(prefix):
        listed = {reference: entry for entry in page if (reference := reference_of(entry.key)) is not None}
        unknown = unreferenced(connection, list(listed))
        survey.known += len(listed) - len(unknown)
        for reference in sorted(unknown):
            _count(survey, reference, listed[reference], before, keep)
    return survey


def _count(survey: Survey, reference: str, entry: ListedObject, before: datetime, keep: int) -> None:
    if entry.last_modified >= before:
        survey.young += 1
        return
    survey.old += 1
    survey.old_bytes += entry.size
    if len(survey.unknown) < keep:
        survey.unknown[reference] = entry.size
