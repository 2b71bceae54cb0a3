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


def erasure_of(connection: sa.Connection, collection: Collection, subject: str) -> uuid.UUID | None:
    """The erasure that took the subject down, if its tombstone stands.

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
    return connection.execute(_ERASURE, {**values, "collection": collection.name}).scalar()


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


_ERASURE = sa.text("""
    SELECT erasure_id FROM cdn_tombstones
    WHERE collection = :collection AND (
        (owner_id = CAST(:owner_id AS text) AND (source_type IS NULL OR media_id = CAST(:media_id AS text)))
        OR CAST(:identity AS text) = ANY(identities) OR asset_id = CAST(:asset_id AS uuid))
    ORDER BY created_at LIMIT 1
""")
