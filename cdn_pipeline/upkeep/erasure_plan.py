"""What an erasure would take, and which erasure took what is not there any more."""

import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.tombstones import images_to_erase
from cdn_pipeline.sources.instagram import parse
from cdn_pipeline.upkeep.erase import Target


@dataclass(frozen=True, slots=True)
class Plan:
    """What would go: images, paths of renditions, SHA-256s of originals; and what other images refer to and stays."""

    images: int
    paths: tuple[str, ...]
    originals: tuple[str, ...]
    shared: tuple[str, ...]


def plan_erasure(connection: sa.Connection, collection: Collection, target: Target) -> Plan:
    """What erasing the target would take now; changes nothing."""
    asset_ids = images_to_erase(connection, collection, target.owner_id, target.asset_ids)
    rows = connection.execute(_REFERENCES, {"asset_ids": asset_ids}).all()
    going = [row.reference for row in rows if not row.shared]
    return Plan(
        images=len(asset_ids),
        paths=tuple(reference for reference in going if reference.startswith("/")),
        originals=tuple(reference for reference in going if not reference.startswith("/")),
        shared=tuple(row.reference for row in rows if row.shared),
    )


_REFERENCES = sa.text("""
    WITH listed AS (
        SELECT path AS reference FROM cdn_image_renditions WHERE asset_id = ANY(:asset_ids)
        UNION SELECT original_sha256 FROM cdn_image_renditions WHERE asset_id = ANY(:asset_ids)
        UNION SELECT original_sha256 FROM cdn_image_assets WHERE id = ANY(:asset_ids) AND original_sha256 IS NOT NULL
    )
    SELECT reference,
           EXISTS (SELECT FROM cdn_image_renditions r
                   WHERE r.path = reference AND r.asset_id <> ALL(:asset_ids))
           OR EXISTS (SELECT FROM cdn_image_renditions r
                      WHERE r.original_sha256 = reference AND r.asset_id <> ALL(:asset_ids))
           OR EXISTS (SELECT FROM cdn_image_assets a
                      WHERE a.original_sha256 = reference AND a.id <> ALL(:asset_ids)) AS shared
    FROM listed ORDER BY reference
""")


@dataclass(frozen=True, slots=True)
class Standing:
    """An erasure whose tombstones stand, and how many they are: an owner's has one."""

    erasure_id: uuid.UUID
    owner_id: str
    scope: str  # owner, or image
    tombstones: int


def erasures_of(connection: sa.Connection, collection: Collection, subject: str) -> list[Standing]:
    """The erasures that took the subject down and whose tombstones stand, the earliest first.

    The subject is the id of an owner or of an image, a public URL, path or key, or a source URL of an erased image.
    """
    values: dict[str, Any] = {"owner_id": None, "media_id": None, "identity": None, "asset_id": None}
    _, is_ours, rest = f"/{subject}".partition(f"/{collection.key_prefix}/")
    if is_ours:
        values["owner_id"], values["media_id"] = [*rest.split("/"), None][:2]
    elif subject.startswith(("http://", "https://")):
        values["identity"] = _identity(subject)
    else:
        values |= {"owner_id": subject, "asset_id": _uuid(subject)}
    rows = connection.execute(_ERASURES, {**values, "collection": collection.name})
    return [Standing(**row) for row in rows.mappings()]


def _identity(source_url: str) -> str | None:
    try:
        return parse(source_url).identity
    except ValueError:
        return None


def _uuid(subject: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(subject)
    except ValueError:
        return None


_ERASURES = sa.text("""
    SELECT erasure_id, owner_id, CASE WHEN bool_or(source_type IS NULL) THEN 'owner' ELSE 'image' END AS scope,
           count(*) AS tombstones
    FROM cdn_tombstones
    WHERE collection = :collection
    GROUP BY erasure_id, owner_id
    HAVING bool_or(
        (owner_id = CAST(:owner_id AS text) AND (source_type IS NULL OR media_id = CAST(:media_id AS text)))
        OR CAST(:identity AS text) = ANY(identities) OR asset_id = CAST(:asset_id AS uuid))
    ORDER BY min(created_at), erasure_id
""")
