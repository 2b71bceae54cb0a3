"""Removing objects that nothing refers to. Why that is safe while runs publish: `cdn_pipeline.queue.references`."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.queue.references import Remover, half_removed, mark_unreferenced, note_removed, sole_remover
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectStore, StoreUnavailable
from cdn_pipeline.upkeep.requests import some_at_once
from cdn_pipeline.upkeep.stores import Stores

GROUP = 100  # objects between two looks at the lock: a second or two


def remove_unreferenced(
    catalog: sa.Engine, stores: Stores, *, paths: Sequence[str] = (), originals: Sequence[str] = ()
) -> set[str]:
    """Removes those of the paths and originals (SHA-256) that no row refers to; returns them.

    Raises:
        StoreUnavailable: some are still there. They are marked, and the next clean-up removes them.
    """
    with sole_remover(catalog) as remover:
        marked = transaction(catalog, partial(mark_unreferenced, paths=paths, originals=originals))
        remove_marked(catalog, stores, marked, remover)
    return marked


def remove_half_removed(catalog: sa.Engine, stores: Stores, limit: int) -> int:
    """Removes what a clean-up that was killed has marked and left; returns how many.

    Raises:
        StoreUnavailable: some are still there.
    """
    with sole_remover(catalog) as remover:
        marked = transaction(catalog, partial(half_removed, limit=limit))
        remove_marked(catalog, stores, marked, remover)
    return len(marked)


Delete = Callable[[ObjectStore, str], Awaitable[None]]
"""Deletes the object under a key."""


async def _delete(store: ObjectStore, key: str) -> None:
    await store.delete(key)


def remove_marked(
    catalog: sa.Engine, stores: Stores, marked: Iterable[str], remover: Remover, *, delete: Delete = _delete
) -> None:
    """Removes from the stores what the `sole_remover`, who calls this, has marked and committed.

    Raises:
        StoreUnavailable: some are still there, and stay marked: a request that timed out may yet be carried out.
        RemoverLostError: likewise; the lock is gone.
    """
    for references in _groups(marked):
        remover.require_lock()
        removed, failures = asyncio.run(_remove(stores, references, delete))
        transaction(catalog, partial(note_removed, references=removed))
        if failures:
            raise failures[0]


def _groups(references: Iterable[str]) -> Iterator[list[str]]:
    """In the order of their names, so many at a time as are removed without another look at the lock."""
    left = sorted(references)
    for start in range(0, len(left), GROUP):
        yield left[start : start + GROUP]


async def _remove(
    stores: Stores, references: Sequence[str], delete: Delete
) -> tuple[list[str], list[StoreUnavailable]]:
    async def remove(reference: str) -> StoreUnavailable | None:
        try:
            await delete(*_place(stores, reference))
        except StoreUnavailable as error:
            return error
        return None

    results = dict(zip(references, await some_at_once(map(remove, references)), strict=True))
    failures = [error for error in results.values() if error is not None]
    return [reference for reference, error in results.items() if error is None], failures


def _place(stores: Stores, reference: str) -> tuple[ObjectStore, str]:
    if reference.startswith("/"):
        return stores.renditions, reference.removeprefix("/")
    return stores.originals, original_key(reference)
