"""Tombstones: whose images stay out of the catalog, and the gate that keeps them out.

An owner's tombstone keeps out all of the owner's images. An image's keeps out its place in the source, and the same
picture in any other place of the owner's: a post's thumbnail does not come back as a carousel's child.

Whoever writes new images asks `kept_out` in the same transaction. It holds the gate open until the transaction ends,
and a tombstone is set with the gate closed: so an image is either admitted before there is a tombstone, and the erasure
finds its row, or kept out.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.sources.discovery import ImageKey, ImageReference

UNKNOWN_IDENTITY = ""  # of objects put before labels told it; whatever the source shows next is another one

_GATE = 0x746F6D62  # an advisory lock of its own; those of runs are hashes


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that is about to enter the catalog, and the identities of its pictures as far as they are known."""

    owner_id: str
    key: ImageKey
    identities: tuple[str, ...] = ()

    @classmethod
    def of(cls, reference: ImageReference) -> "Candidate":
        """The image of a sighting."""
        return cls(reference.owner_id, reference.key, tuple({url.identity for url in reference.candidates}))


def pictures_of(image: str) -> str:
    """SQL: the identities of a row of `cdn_image_assets`, as far as they are known.

    What is visible may be another picture than the one that the source shows now: both have to stay out.
    """
    known = f"ARRAY[{image}.identity, {image}.original_identity]::text[]"
    return f"array_remove(array_remove({known}, NULL), '{UNKNOWN_IDENTITY}')"


def kept_out(connection: sa.Connection, collection: Collection, candidates: Sequence[Candidate]) -> set[ImageKey]:
    """The images that a tombstone keeps out; no tombstone is set before the transaction ends.

    Call it before anything is locked, so that nobody who sets a tombstone waits for long.
    """
    if not candidates:
        return set()
    connection.execute(_HOLD_GATE_OPEN, {"gate": _GATE})
    values = {"collection": collection.name, "candidates": json.dumps([_row(candidate) for candidate in candidates])}
    return {ImageKey(*row) for row in connection.execute(_KEPT_OUT, values)}


def _row(candidate: Candidate) -> dict[str, object]:
    return {
        "owner_id": candidate.owner_id,
        "source_type": candidate.key.source_type,
        "source_id": candidate.key.source_id,
        "media_id": candidate.key.media_id,
        "identities": [identity for identity in candidate.identities if identity != UNKNOWN_IDENTITY],
    }


_HOLD_GATE_OPEN = sa.text("SELECT pg_advisory_xact_lock_shared(:gate)")

# A statement of its own: one that took the lock as well would look at the catalog as it was before the lock.
_KEPT_OUT = sa.text("""
    WITH c AS (
        SELECT * FROM jsonb_to_recordset(CAST(:candidates AS jsonb)) AS c(
            owner_id text, source_type text, source_id text, media_id text, identities text[])
    )
    SELECT c.source_type, c.source_id, c.media_id FROM c
    JOIN cdn_tombstones t ON (t.collection, t.owner_id) = (:collection, c.owner_id)
    WHERE t.source_type IS NULL OR t.identities && c.identities
    UNION
    SELECT c.source_type, c.source_id, c.media_id FROM c
    JOIN cdn_tombstones t USING (source_type, source_id, media_id)
    WHERE t.collection = :collection
""")


def erased_owners(connection: sa.Connection, collection: Collection, owner_ids: Sequence[str]) -> set[str]:
    """Those of the owners of whom everything is kept out; no further one is, before the transaction ends.

    Call it before anything is locked, as `kept_out`.
    """
    connection.execute(_HOLD_GATE_OPEN, {"gate": _GATE})
    values = {"collection": collection.name, "owner_ids": list(owner_ids)}
    return set(connection.scalars(_ERASED_OWNERS, values))


_ERASED_OWNERS = sa.text("""
    SELECT owner_id FROM cdn_tombstones
    WHERE collection = :collection AND owner_id = ANY(:owner_ids) AND source_type IS NULL
""")


def set_owner_tombstone(connection: sa.Connection, collection: Collection, owner_id: str) -> uuid.UUID:
    """Keeps the owner out; returns the tombstone's erasure, an earlier one if the owner has a tombstone already."""
    _close_gate(connection)
    values = {"collection": collection.name, "owner_id": owner_id, "erasure_id": uuid.uuid4()}
    erasure_id: uuid.UUID = connection.execute(_SET_OWNER_TOMBSTONE, values).scalar_one()
    return erasure_id


def set_image_tombstones(
    connection: sa.Connection, collection: Collection, owner_id: str, asset_ids: Sequence[uuid.UUID]
) -> uuid.UUID:
    """Keeps out these images of the owner, and those of the owner's others that show the same pictures.

    Returns the erasure that the tombstones belong to, an earlier one if one of them has a tombstone already.
    """
    _close_gate(connection)
    values: dict[str, object] = {
        "collection": collection.name,
        "owner_id": owner_id,
        "asset_ids": list(asset_ids),
    }
    earlier = connection.execute(_ERASURE_OF_IMAGES, values).scalar()
    erasure_id: uuid.UUID = earlier or uuid.uuid4()
    connection.execute(_SET_IMAGE_TOMBSTONES, {**values, "erasure_id": erasure_id})
    return erasure_id


def _close_gate(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:gate)"), {"gate": _GATE})


_SUBJECT = "(collection, owner_id, source_type, source_id, media_id)"

_SET_OWNER_TOMBSTONE = sa.text(f"""
    INSERT INTO cdn_tombstones AS t (collection, owner_id, erasure_id) VALUES (:collection, :owner_id, :erasure_id)
    ON CONFLICT {_SUBJECT} DO UPDATE SET erasure_id = t.erasure_id
    RETURNING erasure_id
""")

_ERASURE_OF_IMAGES = sa.text("""
    SELECT erasure_id FROM cdn_tombstones
    WHERE collection = :collection AND owner_id = :owner_id AND asset_id = ANY(:asset_ids) LIMIT 1
""")

_SHOWS_THEM = f"""a.collection = :collection AND a.owner_id = :owner_id
    AND (a.id = ANY(:asset_ids) OR {pictures_of("a")} && ARRAY(
        SELECT unnest({pictures_of("a")}) FROM cdn_image_assets a WHERE a.id = ANY(:asset_ids)))"""

_SET_IMAGE_TOMBSTONES = sa.text(f"""
    INSERT INTO cdn_tombstones
        (collection, owner_id, source_type, source_id, media_id, identities, asset_id, erasure_id)
    SELECT a.collection, a.owner_id, a.source_type, a.source_id, a.media_id, {pictures_of("a")}, a.id, :erasure_id
    FROM cdn_image_assets a WHERE {_SHOWS_THEM}
    ON CONFLICT {_SUBJECT} DO UPDATE SET erasure_id = excluded.erasure_id, identities = excluded.identities
""")


def images_to_erase(
    connection: sa.Connection, collection: Collection, owner_id: str, asset_ids: Sequence[uuid.UUID] | None
) -> list[uuid.UUID]:
    """The images that tombstones would be for: all of the owner's, or these and those that show the same pictures."""
    values = {"collection": collection.name, "owner_id": owner_id, "asset_ids": list(asset_ids or ())}
    return list(connection.scalars(_OF_OWNER if asset_ids is None else _OF_IMAGES, values))


_OF_OWNER = sa.text("SELECT id FROM cdn_image_assets WHERE collection = :collection AND owner_id = :owner_id")
_OF_IMAGES = sa.text(f"SELECT a.id FROM cdn_image_assets a WHERE {_SHOWS_THEM}")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What stays out: an owner, or one image of the owner's."""

    id: uuid.UUID
    collection: str
    owner_id: str
    source_type: str | None  # with the next two: the image; None: all of the owner's
    source_id: str | None
    media_id: str | None
    identities: tuple[str, ...]
    asset_id: uuid.UUID | None
    erasure_id: uuid.UUID


_COLUMNS = ", ".join(Tombstone.__slots__)


def tombstones_of(connection: sa.Connection, erasure_id: uuid.UUID, *, unstored: bool = False) -> list[Tombstone]:
    """The tombstones of an erasure; only those without a copy in the store if `unstored`."""
    rows = connection.execute(_OF_ERASURE, {"erasure_id": erasure_id, "unstored": unstored}).mappings()
    return [Tombstone(**{**row, "identities": tuple(row["identities"])}) for row in rows]


_OF_ERASURE = sa.text(f"""
    SELECT {_COLUMNS} FROM cdn_tombstones
    WHERE erasure_id = :erasure_id AND (stored_at IS NULL OR NOT :unstored) ORDER BY id
""")


def note_stored(connection: sa.Connection, tombstone_ids: Sequence[uuid.UUID]) -> None:
    """Notes that the store of originals has copies of these."""
    query = sa.text("UPDATE cdn_tombstones SET stored_at = clock_timestamp() WHERE id = ANY(:ids)")
    connection.execute(query, {"ids": list(tombstone_ids)})


def bring_back(connection: sa.Connection, tombstones: Sequence[Tombstone]) -> int:
    """Sets tombstones again that the catalog has lost; returns how many. Those that it has stay as they are."""
    if not tombstones:
        return 0
    _close_gate(connection)
    rows = json.dumps([asdict(tombstone) for tombstone in tombstones], default=str)
    return connection.execute(_BRING_BACK, {"rows": rows}).rowcount


_BRING_BACK = sa.text(f"""
    INSERT INTO cdn_tombstones ({_COLUMNS}, stored_at)
    SELECT {_COLUMNS}, clock_timestamp() FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(
        id uuid, collection text, owner_id text, source_type text, source_id text, media_id text, identities text[],
        asset_id uuid, erasure_id uuid)
    ON CONFLICT DO NOTHING
""")


def lifted_since(connection: sa.Connection, copies: Sequence[Tombstone], looked_at: datetime) -> list[uuid.UUID]:
    """The erasures of which the store had copies once and has none any more: they were lifted after a backup.

    Args:
        connection: to the catalog.
        copies: all that the store has.
        looked_at: the catalog's time before the store was asked; what was stored later may be missing among them.
    """
    values = {"copies": [copy.id for copy in copies], "looked_at": looked_at}
    return list(connection.scalars(_LIFTED_SINCE, values))


_LIFTED_SINCE = sa.text("""
    SELECT erasure_id FROM cdn_tombstones GROUP BY erasure_id
    HAVING bool_and(id <> ALL(CAST(:copies AS uuid[])) AND coalesce(stored_at < :looked_at, false))
""")


def remove_tombstones(connection: sa.Connection, erasure_id: uuid.UUID) -> int:
    """Lets in again what this erasure keeps out; returns how many tombstones there were."""
    query = sa.text("DELETE FROM cdn_tombstones WHERE erasure_id = :erasure_id")
    return connection.execute(query, {"erasure_id": erasure_id}).rowcount
