"""Presence: which images the source still shows, and since when others are gone from it.

An image that is removed keeps what is published; nothing here opens or ends a job.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.sources.changes import SourceRow
from cdn_pipeline.sources.discovery import ImageKey

_IMAGES_AT_ONCE = 1000


def mark_sighted(connection: sa.Connection, keys: Sequence[ImageKey]) -> None:
    """Notes that the source shows these images now, also those that were gone from it."""
    connection.execute(
        _MARK_SIGHTED,
        {
            "source_types": [key.source_type for key in keys],
            "source_ids": [key.source_id for key in keys],
            "media_ids": [key.media_id for key in keys],
        },
    )


# Locked in the order of ids, as everywhere: two scans at once would deadlock.
_MARK_SIGHTED = sa.text("""
    WITH sighted AS (
        SELECT a.id
        FROM unnest(CAST(:source_types AS text[]), CAST(:source_ids AS text[]), CAST(:media_ids AS text[]))
            AS seen(source_type, source_id, media_id)
        JOIN cdn_image_assets a USING (source_type, source_id, media_id)
        ORDER BY a.id FOR NO KEY UPDATE OF a
    )
    UPDATE cdn_image_assets AS a SET last_checked = clock_timestamp(), removed_at = NULL
    FROM sighted WHERE a.id = sighted.id
""")


def unsighted_images(
    connection: sa.Connection, collection: Collection, shards: Sequence[str], since: datetime
) -> Iterator[Mapping[uuid.UUID, SourceRow]]:
    """Images of these shards that were not sighted since then and are not known to be gone, a thousand at a time."""
    rows = connection.execute(
        _UNSIGHTED,
        {"collection": collection.name, "shards": list(shards), "since": since},
        execution_options={"yield_per": _IMAGES_AT_ONCE},
    )
    for some in rows.partitions():
        yield {row.id: SourceRow(row.source_type, row.source_id) for row in some}


_UNSIGHTED = sa.text("""
    SELECT id, source_type, source_id FROM cdn_image_assets
    WHERE collection = :collection AND shard = ANY(:shards) AND removed_at IS NULL AND last_checked < :since
""")


def mark_removed(connection: sa.Connection, asset_ids: Sequence[uuid.UUID], since: datetime) -> Counter[str]:
    """Notes that the source rows of these images are gone, unless they were sighted since; counts them by shard."""
    return Counter(connection.scalars(_MARK_REMOVED, {"asset_ids": list(asset_ids), "since": since}))


_MARK_REMOVED = sa.text("""
    UPDATE cdn_image_assets SET removed_at = clock_timestamp()
    WHERE id IN (
        SELECT id FROM cdn_image_assets
        WHERE id = ANY(:asset_ids) AND removed_at IS NULL AND last_checked < :since
        ORDER BY id FOR NO KEY UPDATE)
    RETURNING shard
""")
