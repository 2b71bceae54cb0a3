"""Copies of tombstones in the store of originals, so that erased images stay out when the catalog is lost.

A copy has ids and identities, and neither a picture nor a URL. Its key is the tombstone's id, so putting it twice is
one copy.
"""

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa

from cdn_pipeline.queue.erasures import note_lost_erasures
from cdn_pipeline.queue.tombstones import Tombstone, bring_back, note_stored, tombstones_of
from cdn_pipeline.store.keys import TOMBSTONES, tombstone_key
from cdn_pipeline.store.objects import ObjectStore

_AT_ONCE = 500  # tombstones of one transaction


def store_copies(catalog: sa.Engine, originals: ObjectStore, erasure_id: uuid.UUID) -> None:
    """Puts copies of the erasure's tombstones that have none.

    Raises:
        StoreUnavailable: the store fails.
    """
    with catalog.connect() as connection:
        tombstones = tombstones_of(connection, erasure_id, unstored=True)
    asyncio.run(_put(originals, tombstones))
    with catalog.begin() as connection:
        note_stored(connection, [tombstone.id for tombstone in tombstones])


async def _put(originals: ObjectStore, tombstones: Sequence[Tombstone]) -> None:
    for tombstone in tombstones:
        data = json.dumps(asdict(tombstone), default=str).encode()
        await originals.put_verified(tombstone_key(tombstone.id), data, content_type="application/json")


def delete_copies(originals: ObjectStore, tombstones: Sequence[Tombstone]) -> None:
    """Removes the copies of these tombstones.

    Raises:
        StoreUnavailable: the store fails; some may be gone.
    """

    async def delete() -> None:
        for tombstone in tombstones:
            await originals.delete(tombstone_key(tombstone.id))

    asyncio.run(delete())


def read_copies(originals: ObjectStore) -> list[Tombstone]:
    """The tombstones that the store has.

    Raises:
        StoreUnavailable: the store fails.
        ValueError: a copy is damaged; nothing may be brought back until somebody has looked at it.
    """
    return asyncio.run(_read(originals))


def bring_all_back(catalog: sa.Engine, copies: Sequence[Tombstone]) -> int:
    """Sets those of the tombstones again that the catalog has lost, and their audit rows; returns how many.

    Before anything else is brought back into a catalog: `queue.tombstones.kept_out` then says what must stay out.
    """
    restored = 0
    for start in range(0, len(copies), _AT_ONCE):
        with catalog.begin() as connection:
            restored += bring_back(connection, copies[start : start + _AT_ONCE])
            note_lost_erasures(connection)
    return restored


async def _read(originals: ObjectStore) -> list[Tombstone]:
    keys = [key async for key in originals.list(TOMBSTONES)]
    return [_tombstone(key, await originals.get(key)) for key in sorted(keys)]


def _tombstone(key: str, data: bytes) -> Tombstone:
    try:
        fields = json.loads(data)
        return Tombstone(
            id=uuid.UUID(fields["id"]),
            collection=str(fields["collection"]),
            owner_id=str(fields["owner_id"]),
            source_type=fields["source_type"],
            source_id=fields["source_id"],
            media_id=fields["media_id"],
            identities=tuple(map(str, fields["identities"])),
            asset_id=fields["asset_id"] and uuid.UUID(fields["asset_id"]),
            erasure_id=uuid.UUID(fields["erasure_id"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{key} is no tombstone, or damaged: {error!r}") from error
