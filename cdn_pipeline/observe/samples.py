"""Small samples of the catalog: pictures to look at, and published objects to verify."""

import asyncio
import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from cdn_pipeline.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class SamplePicture:
    """One published image."""

    source_type: str
    owner_id: str
    media_id: str
    url: str
    width: int
    height: int
    file_size: int


def sample_pictures(connection: sa.Connection, shard: str, count: int) -> list[SamplePicture]:
    """Some of the shard's published images, in the largest size, those made last first."""
    rows = connection.execute(
        sa.text("""
            SELECT a.source_type, a.owner_id, a.media_id, d.base_url || r.path AS url, r.width, r.height, r.file_size
            FROM cdn_image_assets a
            JOIN cdn_image_renditions r ON r.asset_id = a.id AND r.state = 'current'
            CROSS JOIN cdn_delivery d
            WHERE a.shard = :shard AND r.size_name = '256'
            ORDER BY r.published_at DESC LIMIT :count
        """),
        {"shard": shard, "count": count},
    )
    return [SamplePicture(**row) for row in rows.mappings()]


@dataclass(frozen=True, slots=True)
class Inspection:
    """How many published objects were looked at, and the paths of those that are not as the catalog says."""

    inspected: int
    missing: tuple[str, ...]


def inspect_published_objects(connection: sa.Connection, objects: ObjectStore, count: int) -> Inspection:
    """Asks the store for a random sample of the renditions that are visible now.

    Ids are random, so those that follow a random one are a random sample, found by the primary key alone.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    start = uuid.uuid4()
    rows = connection.execute(_FROM, {"start": start, "count": count}).all()
    if len(rows) < count:
        rows = [*rows, *connection.execute(_BEFORE, {"start": start, "count": count - len(rows)})]
    missing = asyncio.run(_missing(objects, [(row.path, row.file_size) for row in rows]))
    return Inspection(len(rows), tuple(missing))


_SAMPLE = """
    SELECT path, file_size FROM cdn_image_renditions
    WHERE state = 'current' AND id {} :start ORDER BY id LIMIT :count
"""
_FROM = sa.text(_SAMPLE.format(">="))
_BEFORE = sa.text(_SAMPLE.format("<"))


async def _missing(objects: ObjectStore, renditions: list[tuple[str, int]]) -> list[str]:
    places = asyncio.Semaphore(16)

    async def is_there(path: str, file_size: int) -> bool:
        async with places:
            head = await objects.head(path.removeprefix("/"))
            return head is not None and head.size == file_size

    there = await asyncio.gather(*(is_there(path, file_size) for path, file_size in renditions))
    return [path for (path, _), found in zip(renditions, there, strict=True) if not found]
