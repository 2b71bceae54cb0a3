"""Which rows of the application database are new since they were last read, by their `updated_at` and its own clock.

A row can become visible after later ones: its transaction began earlier and was committed late. So every look back goes
`OVERLAP` further than the last reading, and the rows within it are counted: more of them than were counted when they
were read means that some were committed late. Two indexes on `updated_at` keep a look to the rows that changed; without
them both tables are read. Rows without `updated_at`, or committed later than `OVERLAP`, are for scans of everything.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import SHARD_COUNT, SHARDS
from cdn_pipeline.sources.app_database import PROFILES_PER_BATCH, SourceBatch, read_profiles, reading, shard_bounds

OVERLAP = timedelta(minutes=5)
# A shard that nobody looked at for so long is taken for changed: a look reads the changes of this time at most.
FORGOTTEN = timedelta(hours=1)

_IDS_AT_ONCE = 10_000  # 0.8 MB; each page looks through all changes again


@dataclass(frozen=True, slots=True)
class Watermark:
    """Until when a shard's rows have been read, by the source's clock, and how many were at most `OVERLAP` old."""

    scanned_at: datetime
    recent_rows: int


@dataclass(frozen=True, slots=True)
class SourceChanges:
    """What a look at the source found, by shard.

    `marks` say where the source stood: the new watermark of a shard that has not changed, and of one that is read whole
    from now on.
    """

    changed: frozenset[str]
    marks: Mapping[str, Watermark]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """The row that an image comes from: a profile, or else a post, as the image's type says."""

    source_type: str
    source_id: str


def changed_shards(engine: sa.Engine, watermarks: Mapping[str, Watermark]) -> SourceChanges:
    """Compares all shards with their watermarks, in one query. A shard without a watermark has changed.

    Rows of the future count when their time has come.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    with reading(engine) as connection:
        now = connection.execute(_CLOCK).scalar_one()
        known = {shard: mark for shard, mark in watermarks.items() if now - FORGOTTEN < mark.scanned_at <= now}
        found = {row.shard: row for row in connection.execute(_CHANGES, _changes_since(known, now))}
    touched = {
        shard for shard in found.keys() & known if found[shard].newer or found[shard].earlier > known[shard].recent_rows
    }
    return SourceChanges(
        changed=frozenset(SHARDS) - (known.keys() - touched),
        marks={shard: Watermark(now, found[shard].recent if shard in found else 0) for shard in SHARDS},
    )


def marks_of_now(engine: sa.Engine) -> Mapping[str, Watermark]:
    """Where the source stands: the watermark of every shard for a scan that begins after this.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    return changed_shards(engine, {}).marks


def _changes_since(known: Mapping[str, Watermark], now: datetime) -> dict[str, Any]:
    return {
        "now": now,
        "overlap": OVERLAP,
        "least": min([now, *(mark.scanned_at for mark in known.values())]) - OVERLAP,
        "shards": list(known),
        "scanned_at": [mark.scanned_at for mark in known.values()],
    }


def _shard_of(profile_id: str) -> str:
    """SQL for the shard of an owner: the top six bits of its UUID."""
    return f"lpad(to_hex(get_byte(uuid_send({profile_id}), 0) / {256 // SHARD_COUNT}), 2, '0')"


_CLOCK = sa.text("SELECT clock_timestamp()")

_CHANGES = sa.text(f"""
    SELECT shard,
           count(*) FILTER (WHERE updated_at > scanned_at) AS newer,
           count(*) FILTER (WHERE updated_at > scanned_at - CAST(:overlap AS interval)
                              AND updated_at <= scanned_at) AS earlier,
           count(*) FILTER (WHERE updated_at > :now - CAST(:overlap AS interval)) AS recent
    FROM (
        SELECT {_shard_of("id")} AS shard, updated_at FROM profiles WHERE updated_at > :least AND updated_at <= :now
        UNION ALL
        SELECT {_shard_of("profile_id")}, updated_at FROM posts WHERE updated_at > :least AND updated_at <= :now
    ) AS touched
    LEFT JOIN unnest(CAST(:shards AS text[]), CAST(:scanned_at AS timestamptz[])) AS known(shard, scanned_at)
        USING (shard)
    GROUP BY shard
""")


def read_changed_references(engine: sa.Engine, watermarks: Mapping[str, Watermark]) -> Iterator[SourceBatch]:
    """Yields the references of profiles that changed, or whose posts did, since their shard's watermark.

    `watermarks` are those of a contiguous range of shards. A profile is read whole, as in a scan of everything; batches
    come in the order of shards.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    for ids in _changed_profiles(engine, watermarks):
        for start in range(0, len(ids), PROFILES_PER_BATCH):
            batch = read_profiles(engine, ids[start : start + PROFILES_PER_BATCH])
            if batch.profiles:  # not if posts changed whose profile does not exist
                yield batch


def _changed_profiles(engine: sa.Engine, watermarks: Mapping[str, Watermark]) -> Iterator[Sequence[uuid.UUID]]:
    first, last = shard_bounds(min(watermarks), max(watermarks))
    while True:
        parameters = {"first": first, "last": last, "page": _IDS_AT_ONCE, **_since(watermarks)}
        with reading(engine) as connection:
            ids = connection.scalars(_CHANGED_PROFILES, parameters).all()
        yield ids
        if len(ids) < _IDS_AT_ONCE or ids[-1] == last:
            return
        first = uuid.UUID(int=ids[-1].int + 1)


def _since(watermarks: Mapping[str, Watermark]) -> dict[str, Any]:
    since = [mark.scanned_at - OVERLAP for mark in watermarks.values()]
    return {"shards": list(watermarks), "since": since, "least": min(since)}


_CHANGED_PROFILES = sa.text(f"""
    SELECT DISTINCT id FROM (
        SELECT id, updated_at FROM profiles WHERE updated_at > :least AND id BETWEEN :first AND :last
        UNION ALL
        SELECT profile_id, updated_at FROM posts WHERE updated_at > :least AND profile_id BETWEEN :first AND :last
    ) AS touched
    JOIN unnest(CAST(:shards AS text[]), CAST(:since AS timestamptz[])) AS known(shard, since)
        ON known.shard = {_shard_of("touched.id")} AND updated_at > since
    ORDER BY id LIMIT :page
""")


def missing_rows(engine: sa.Engine, rows: Collection[SourceRow]) -> frozenset[SourceRow]:
    """Which of these profiles and posts are no longer there.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    with reading(engine) as connection:
        missing = connection.execute(
            _MISSING,
            {"source_types": [row.source_type for row in rows], "source_ids": [row.source_id for row in rows]},
        )
        return frozenset(SourceRow(row.source_type, row.source_id) for row in missing)


_MISSING = sa.text("""
    SELECT source_type, CAST(id AS text) AS source_id
    FROM unnest(CAST(:source_types AS text[]), CAST(:source_ids AS uuid[])) AS wanted(source_type, id)
    WHERE CASE source_type WHEN 'profile_avatar' THEN NOT EXISTS (SELECT FROM profiles WHERE profiles.id = wanted.id)
                           ELSE NOT EXISTS (SELECT FROM posts WHERE posts.id = wanted.id) END
""")
