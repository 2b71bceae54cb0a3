"""Watermarks: how far discovery has read each shard of the source, kept in the catalog."""

from collections.abc import Mapping

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.sources.changes import Watermark


def read_watermarks(connection: sa.Connection, collection: Collection) -> dict[str, Watermark]:
    """The watermark of every shard that was ever read to its end."""
    rows = connection.execute(
        sa.text("SELECT shard, scanned_at, recent_rows FROM cdn_source_watermarks WHERE collection = :collection"),
        {"collection": collection.name},
    )
    return {row.shard: Watermark(row.scanned_at, row.recent_rows) for row in rows}


def advance_watermarks(
    connection: sa.Connection, collection: Collection, marks: Mapping[str, Watermark], *, every_row: bool = False
) -> None:
    """Notes that these shards have been read until their marks; `every_row` if by a scan of everything.

    Of two scans at once the later one's watermark stays. It goes back only if it is an hour ahead, which means that the
    source has another clock now.
    """
    connection.execute(
        _ADVANCE,
        {
            "collection": collection.name,
            "shards": list(marks),
            "scanned_at": [mark.scanned_at for mark in marks.values()],
            "recent_rows": [mark.recent_rows for mark in marks.values()],
            "every_row": every_row,
        },
    )


def forget_watermarks(connection: sa.Connection, collection: Collection) -> None:
    """The next look at the source reads every row."""
    query = sa.text("DELETE FROM cdn_source_watermarks WHERE collection = :collection")
    connection.execute(query, {"collection": collection.name})


# In the order of shards, so that two that advance the same ones do not wait for each other.
_LATER = """(excluded.scanned_at > known.scanned_at
    OR known.scanned_at > excluded.scanned_at + interval '1 hour')"""
_ADVANCE = sa.text(f"""
    INSERT INTO cdn_source_watermarks AS known (collection, shard, scanned_at, recent_rows, fully_scanned_at)
    SELECT :collection, shard, scanned_at, recent_rows, CASE WHEN :every_row THEN clock_timestamp() END
    FROM unnest(CAST(:shards AS text[]), CAST(:scanned_at AS timestamptz[]), CAST(:recent_rows AS int[]))
        AS mark(shard, scanned_at, recent_rows)
    ORDER BY shard
    ON CONFLICT (collection, shard) DO UPDATE
    SET recent_rows = CASE WHEN {_LATER} THEN excluded.recent_rows ELSE known.recent_rows END,
        scanned_at = CASE WHEN {_LATER} THEN excluded.scanned_at ELSE known.scanned_at END,
        fully_scanned_at = coalesce(excluded.fully_scanned_at, known.fully_scanned_at)
""")
