"""Restoration: what the stores have and the catalog has lost becomes rows again. No job is needed for what is there.

Two cases in one: the catalog is empty, or it is an old backup and the stores went on. An image's row that is new has no
source URL yet (`NO_URL`, long expired): the next scan of the source finds the same identity, notes the URL and opens no
job. A row that was there follows the store if what lies there was observed at least as late as what the row tells.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.erasures import list_objects, open_erasure, take_down
from cdn_pipeline.queue.intake import lock_images
from cdn_pipeline.queue.outcomes import NewRendition
from cdn_pipeline.queue.references import lock_references, removals
from cdn_pipeline.queue.reopen import open_repair_jobs
from cdn_pipeline.queue.settlement import placeholder_sql
from cdn_pipeline.queue.states import ImageStatus, Stage
from cdn_pipeline.queue.tombstones import UNKNOWN_IDENTITY, Candidate, kept_out, pictures_of
from cdn_pipeline.sources.discovery import ImageKey

NO_URL = ""


@dataclass(frozen=True, slots=True)
class FoundOriginal:
    """An original that a label names; size and format are None if the store has lost it."""

    sha256: str
    identity: str
    rank: int
    file_size: int | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class FoundRendition:
    """A rendition in the store, and when it was put there."""

    rendition: NewRendition
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class FoundImage:
    """All that the stores have of an image. `current` are the paths of the renditions to be shown."""

    key: ImageKey
    owner_id: str
    shard: str
    taken_at: datetime | None
    observed_at: datetime
    original: FoundOriginal
    renditions: tuple[FoundRendition, ...] = ()
    current: frozenset[str] = frozenset()
    is_whole: bool = False  # every size of the collection's recipe is among them
    placeholder: str | None = None  # of `current`

    @property
    def references(self) -> tuple[str, ...]:
        """The SHA-256 of its original, the paths of its renditions."""
        return (self.original.sha256, *(found.rendition.path for found in self.renditions))


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of found images: rows that are new, rows that changed, what a tombstone keeps out, open jobs."""

    new: int = 0
    changed: int = 0
    renditions: int = 0  # rows
    kept_out: tuple[FoundImage, ...] = ()
    in_removal: int = 0  # clean-up is taking some of it, or took it since `since`
    repairs: int = 0


@dataclass(frozen=True, slots=True)
class KnownPath:
    """What the catalog knows of a rendition, and since when."""

    state: str
    since: datetime


def known_paths(connection: sa.Connection, paths: Sequence[str]) -> dict[str, KnownPath]:
    """Those of the paths that the catalog has."""
    rows = connection.execute(_KNOWN_PATHS, {"paths": list(paths)})
    return {row.path: KnownPath(row.state, row.since) for row in rows}


# Of two images with one path, the row that is current speaks for it.
_KNOWN_PATHS = sa.text("""
    SELECT DISTINCT ON (path) path, state, greatest(created_at, published_at, superseded_at) AS since
    FROM cdn_image_renditions WHERE path = ANY(:paths) ORDER BY path, state
""")


def restore_images(
    connection: sa.Connection, collection: Collection, images: Sequence[FoundImage], since: datetime
) -> Restored:
    """Writes what was found into the catalog, in the caller's transaction; running it twice changes nothing more.

    What tombstones keep out is left out, and what clean-up may have removed `since` (the catalog's time before the
    stores were looked at) is left for another time. An image that is not whole gets a job that encodes its original.
    """
    if not images:
        return Restored()
    erased = kept_out(connection, collection, [_candidate(image) for image in images])
    lock_references(connection)
    removed = removals(connection, [reference for image in images for reference in image.references])
    wanted = [image for image in images if image.key not in erased]
    admitted = [image for image in wanted if not removed.overtake(image.references, since)]
    lock_images(connection, [image.key for image in admitted])
    rows = {"rows": json.dumps([_row(collection, image) for image in admitted])}
    new = set(connection.scalars(_INSERT_IMAGES, rows))
    adopted = {_key(row): row.id for row in connection.execute(_ADOPTED, {**rows, "new": list(new)})}
    ids = {_key(row): row.id for row in connection.execute(_IDS, rows)}
    rows["rows"] = json.dumps([_row(collection, image) for image in admitted if image.key in adopted])
    changed = set(connection.scalars(_FOLLOW_STORE, rows))
    connection.execute(_SET_PLACEHOLDERS, rows)
    renditions = [_rendition_row(ids[image.key], found) for image in admitted for found in image.renditions]
    stored = connection.execute(_INSERT_RENDITIONS, {"rows": json.dumps(renditions)}).rowcount
    changed |= _show(connection, [image for image in admitted if image.key in adopted], adopted)
    broken = [adopted[image.key] for image in admitted if image.key in adopted and not image.is_whole]
    repairs = open_repair_jobs(connection, collection, collection.recipe, broken, Stage.ENCODE) if broken else set()
    return Restored(
        new=len(new),
        changed=len(changed - new),
        renditions=stored,
        kept_out=tuple(image for image in images if image.key in erased),
        in_removal=len(wanted) - len(admitted),
        repairs=len(repairs),
    )


def _show(connection: sa.Connection, images: Sequence[FoundImage], ids: Mapping[ImageKey, uuid.UUID]) -> set[uuid.UUID]:
    """Makes the images' current renditions current and no others; returns the images for which that is new."""
    shown = [(ids[image.key], path, image.original.sha256) for image in images for path in image.current]
    values = {
        "asset_ids": [asset_id for asset_id, _, _ in shown],
        "paths": [path for _, path, _ in shown],
        "originals": [original for _, _, original in shown],
    }
    connection.execute(_SUPERSEDE, values)
    return set(connection.scalars(_MAKE_CURRENT, values))


def _candidate(image: FoundImage) -> Candidate:
    return Candidate(image.owner_id, image.key, (image.original.identity,))


def _key(row: Any) -> ImageKey:
    return ImageKey(row.source_type, row.source_id, row.media_id)


def _row(collection: Collection, image: FoundImage) -> dict[str, Any]:
    return {
        "collection": collection.name,
        "shard": image.shard,
        "owner_id": image.owner_id,
        "source_type": image.key.source_type,
        "source_id": image.key.source_id,
        "media_id": image.key.media_id,
        "taken_at": image.taken_at and image.taken_at.isoformat(),
        "observed_at": image.observed_at.isoformat(),
        "identity": image.original.identity,
        "rank": image.original.rank,
        "original_sha256": image.original.sha256,
        "original_size": image.original.file_size,
        "original_format": image.original.format,
        "published_at": max(found.stored_at for found in image.renditions).isoformat() if image.current else None,
        "shown": bool(image.current),
        "whole": image.is_whole,
        "placeholder": image.placeholder,
    }


def _rendition_row(asset_id: uuid.UUID, found: FoundRendition) -> dict[str, Any]:
    fields = {name: getattr(found.rendition, name) for name in NewRendition.__slots__}
    return {**fields, "asset_id": str(asset_id), "stored_at": found.stored_at.isoformat()}


_ROWS = """jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(
    collection text, shard text, owner_id text, source_type text, source_id text, media_id text, taken_at timestamptz,
    observed_at timestamptz, identity text, rank int, original_sha256 text, original_size int, original_format text,
    published_at timestamptz, shown bool, whole bool, placeholder text)"""

_INSERT_IMAGES = sa.text(f"""
    INSERT INTO cdn_image_assets (
        collection, shard, owner_id, source_type, source_id, media_id, taken_at, source_url, identity, rank,
        url_expires_at, observed_at, original_sha256, original_identity, original_rank, original_file_size,
        original_format, processing_status, processing_completed_at, placeholder)
    SELECT collection, shard, owner_id, source_type, source_id, media_id, taken_at, '{NO_URL}', identity, rank,
           CAST('epoch' AS timestamptz), observed_at, original_sha256, identity, rank, original_size, original_format,
           CASE WHEN whole THEN '{ImageStatus.COMPLETED}' ELSE '{ImageStatus.PENDING}' END, published_at,
           placeholder
    FROM {_ROWS} ON CONFLICT (source_type, source_id, media_id) DO NOTHING
    RETURNING id
""")

_IDS = sa.text(f"""
    SELECT a.id, source_type, source_id, media_id
    FROM {_ROWS} JOIN cdn_image_assets a USING (source_type, source_id, media_id)
""")

# A row's `observed_at` only moves on, and a label repeats it: what was put after a backup is not older than the backup.
# An original that was never encoded has to be later than the row to be another picture.
_ADOPTED = sa.text(f"""
    {_IDS.text}
    WHERE a.id = ANY(:new) OR a.original_sha256 IS NULL OR o.observed_at > a.observed_at
       OR shown AND (o.observed_at = a.observed_at OR NOT EXISTS (
           SELECT FROM cdn_image_renditions r WHERE r.asset_id = a.id AND r.state = 'current'))
""")

# The row was of another picture, or of an earlier sighting: its URL is not this picture's.
_MOVES = "(a.identity <> o.identity AND o.observed_at >= a.observed_at)"

# A failed image shows another picture now; what it was refused for is asked again when the source is scanned.
_FOLLOW_STORE = sa.text(f"""
    UPDATE cdn_image_assets AS a
    SET original_sha256 = o.original_sha256, original_identity = o.identity, original_rank = o.rank,
        original_file_size = original_size, original_format = o.original_format, original_width = NULL,
        original_height = NULL, source_etag = NULL, source_last_modified = NULL, source_content_type = NULL,
        identity = CASE WHEN {_MOVES} THEN o.identity ELSE a.identity END,
        rank = CASE WHEN {_MOVES} THEN o.rank ELSE a.rank END,
        source_url = CASE WHEN {_MOVES} THEN '{NO_URL}' ELSE source_url END,
        fallback_urls = CASE WHEN {_MOVES} THEN '[]' ELSE fallback_urls END,
        url_expires_at = CASE WHEN {_MOVES} THEN 'epoch' ELSE url_expires_at END,
        observed_at = greatest(a.observed_at, o.observed_at), taken_at = coalesce(a.taken_at, o.taken_at),
        processing_status = CASE processing_status WHEN '{ImageStatus.FAILED}' THEN '{ImageStatus.PENDING}'
                                                   ELSE processing_status END,
        processing_completed_at = greatest(processing_completed_at, published_at), updated_at = clock_timestamp()
    FROM {_ROWS}
    WHERE (a.source_type, a.source_id, a.media_id) = (o.source_type, o.source_id, o.media_id)
      AND a.original_sha256 IS DISTINCT FROM o.original_sha256
    RETURNING a.id
""")

_SET_PLACEHOLDERS = sa.text(f"""
    UPDATE cdn_image_assets AS a SET placeholder = {placeholder_sql("o.original_sha256")}
    FROM {_ROWS}
    WHERE (a.source_type, a.source_id, a.media_id) = (o.source_type, o.source_id, o.media_id)
      AND shown AND a.placeholder IS DISTINCT FROM o.placeholder
""")

# As superseded ones: clean-up takes what is not made current in the same transaction, after the grace period.
_INSERT_RENDITIONS = sa.text("""
    INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash, path,
                                      original_sha256, recipe, recipe_version, encoder, state, created_at,
                                      superseded_at)
    SELECT asset_id, size_name, format, width, height, file_size, content_hash, path, original_sha256, recipe,
           recipe_version, encoder, 'superseded', stored_at, clock_timestamp()
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(
        asset_id uuid, size_name text, format text, width int, height int, file_size int, content_hash text,
        path text, original_sha256 text, recipe text, recipe_version int, encoder text, stored_at timestamptz)
    ON CONFLICT (asset_id, path) DO NOTHING
""")

_SHOWN = """unnest(CAST(:asset_ids AS uuid[]), CAST(:paths AS text[]), CAST(:originals AS text[]))
    AS shown(asset_id, path, original_sha256)"""

_SUPERSEDE = sa.text(f"""
    UPDATE cdn_image_renditions AS r SET state = 'superseded', superseded_at = clock_timestamp()
    WHERE asset_id = ANY(:asset_ids) AND state = 'current'
      AND NOT EXISTS (SELECT FROM {_SHOWN} WHERE (shown.asset_id, shown.path) = (r.asset_id, r.path))
""")

_MAKE_CURRENT = sa.text(f"""
    UPDATE cdn_image_renditions AS r
    SET state = 'current', superseded_at = NULL, published_at = coalesce(r.published_at, r.created_at),
        original_sha256 = shown.original_sha256
    FROM {_SHOWN}
    WHERE (shown.asset_id, shown.path) = (r.asset_id, r.path)
      AND (r.state <> 'current' OR r.original_sha256 <> shown.original_sha256)
    RETURNING r.asset_id
""")


# -- what was erased since the backup --


def take_down_erased(connection: sa.Connection, collection: Collection) -> int:
    """Removes the rows of images that tombstones keep out; returns how many images there were.

    A backup of the catalog is older than some erasures. They are opened again: `Eraser.go_on` ends them.
    """
    erasure_ids = _open_erasures(connection, collection, _ERASURES_OF_ROWS, {})
    return sum(take_down(connection, erasure_id) for erasure_id in erasure_ids)


def reopen_erasures(connection: sa.Connection, collection: Collection, images: Sequence[FoundImage]) -> int:
    """Opens the erasures of images whose objects were found in the stores all the same; returns how many.

    All that was found of such an image is on its erasure's list then.
    """
    rows = [{**_row(collection, image), "stored": list(image.references)} for image in images]
    values = {"collection": collection.name, "rows": json.dumps(rows)}
    opened = _open_erasures(connection, collection, _ERASURES_OF_FOUND, values)
    for found in connection.execute(_STORED_OF_ERASED, values):
        list_objects(connection, found.erasure_id, found.stored)
    return len(opened)


def _open_erasures(
    connection: sa.Connection, collection: Collection, query: sa.TextClause, values: Mapping[str, Any]
) -> list[uuid.UUID]:
    erasures = connection.execute(query, {"collection": collection.name, **values}).all()
    for erasure in erasures:
        open_erasure(
            connection,
            collection,
            erasure.erasure_id,
            erasure.owner_id,
            scope=erasure.scope,
            requested_by="rebuild-catalog",
            reason="its tombstone was found, and something of it was still there",
        )
    return [erasure.erasure_id for erasure in erasures]


def _keeps_out(pictures: str) -> str:
    """As `tombstones.kept_out` has it: an owner's images, a place in the source, the same picture in another place."""
    return f"""(t.collection, t.owner_id) = (o.collection, o.owner_id) AND (
        t.source_type IS NULL OR (o.source_type, o.source_id, o.media_id) = (t.source_type, t.source_id, t.media_id)
        OR t.identities && {pictures})"""


def _erasures_of(images: str, pictures: str) -> sa.TextClause:
    return sa.text(f"""
        SELECT erasure_id, t.owner_id, CASE WHEN bool_or(t.source_type IS NULL) THEN 'owner' ELSE 'image' END AS scope
        FROM cdn_tombstones t JOIN {images} ON {_keeps_out(pictures)}
        WHERE t.collection = :collection GROUP BY erasure_id, t.owner_id
    """)


_FOUND = _ROWS.removesuffix(")") + ", stored text[])"
_ITS_PICTURE = f"array_remove(ARRAY[o.identity], '{UNKNOWN_IDENTITY}')"

_ERASURES_OF_ROWS = _erasures_of("cdn_image_assets o", pictures_of("o"))
_ERASURES_OF_FOUND = _erasures_of(_FOUND, _ITS_PICTURE)

_STORED_OF_ERASED = sa.text(f"""
    SELECT erasure_id, array_agg(DISTINCT reference) AS stored
    FROM cdn_tombstones t JOIN {_FOUND} ON {_keeps_out(_ITS_PICTURE)} CROSS JOIN LATERAL unnest(stored) AS reference
    WHERE t.collection = :collection GROUP BY erasure_id
""")
