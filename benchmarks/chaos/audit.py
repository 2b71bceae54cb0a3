"""What must hold after a disaster: counted from source rows and from the bytes in the stores, not by the pipeline.

Every function returns complaints; none is the good answer.
"""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from io import BytesIO

import sqlalchemy as sa
from PIL import Image

from benchmarks.chaos.world import World
from cdn_pipeline.observe.stats import HOUR, SETTLES_IN, compute_hour

_SIZES = ("256", "512")
_HASH_DIGITS = 16


def complaints(world: World) -> list[str]:
    """Everything, once all faults are gone and a last run has ended."""
    return [*lost(world), *dangling(world), *doubled(world), *unfinished(world), *miscounted(world), *orphaned(world)]


def lost(world: World) -> Iterator[str]:
    """Pictures of the source that are not visible in every size."""
    with world.source.connect() as connection:
        wanted = set(connection.scalars(_WANTED))
    with world.catalog.connect() as connection:
        mirrored = set(connection.scalars(_MIRRORED))
        for path, status, kind in connection.execute(_NOT_VISIBLE):
            yield f"lost: {path} is {status}, {kind}"
    if not wanted:
        yield "lost: the source has no pictures"
    for path in sorted(wanted - mirrored):
        yield f"lost: {path} is not in the catalog"
    for path in sorted(mirrored - wanted):
        yield f"invented: {path} is not in the source"


_PATH = "regexp_replace({}, '^https?://[^/]+|[?].*$', '', 'g')"

_WANTED = sa.text(f"""
    SELECT {_PATH.format("profile_pic_url_hd")} FROM profiles
    UNION SELECT {_PATH.format("display_url")} FROM posts
    UNION SELECT {_PATH.format("jsonb_path_query(sidecar_children, '$.**.display_url') #>> '{}'")} FROM posts
""")

_MIRRORED = sa.text(f"SELECT {_PATH.format('source_url')} FROM cdn_image_assets")

_NOT_VISIBLE = sa.text(f"""
    SELECT {_PATH.format("a.source_url")}, a.processing_status, a.failure_kind
    FROM cdn_image_assets a JOIN cdn_image_urls u ON u.asset_id = a.id
    WHERE num_nulls(u.cdn_url_256, u.cdn_url_512) > 0
""")


def dangling(world: World) -> Iterator[str]:
    """Visible URLs without the object that they promise. Holds at any moment, not only at the end."""
    with world.catalog.connect() as connection:
        promised = {row.path: row for row in connection.execute(_PROMISED)}
    found = asyncio.run(_bytes_of(world, [path.removeprefix("/") for path in promised]))
    for path, row in promised.items():
        data = found.get(path.removeprefix("/"))
        if data is None:
            yield f"dangling: {path} is visible and not in the store"
        elif hashlib.sha256(data).hexdigest()[:_HASH_DIGITS] != path.rpartition("/")[2].partition(".")[0]:
            yield f"dangling: {path} has other bytes"
        elif _size_of(data) != (row.width, row.height):
            yield f"dangling: {path} has another size"


_PROMISED = sa.text(
    " UNION ALL ".join(
        f"SELECT cdn_path_{size} AS path, width_{size} AS width, height_{size} AS height FROM cdn_image_urls "
        f"WHERE cdn_path_{size} IS NOT NULL"
        for size in _SIZES
    )
)


async def _bytes_of(world: World, keys: Sequence[str]) -> dict[str, bytes]:
    store = world.store(world.objects_url)
    there = {key async for key in store.list()}
    return {key: await store.get(key) for key in keys if key in there}


def _size_of(data: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(data), formats=["WEBP"]) as image:
        image.load()
        return image.size


def doubled(world: World) -> Iterator[str]:
    """Images that were published more than once: two jobs that completed, or renditions beside the visible ones."""
    with world.catalog.connect() as connection:
        for asset_id, jobs in connection.execute(_COMPLETED_TWICE):
            yield f"published twice: image {asset_id} has {jobs} completed jobs"
        for asset_id, renditions in connection.execute(_TOO_MANY_RENDITIONS):
            yield f"published twice: image {asset_id} has {renditions} renditions"


_COMPLETED_TWICE = sa.text("""
    SELECT asset_id, count(*) FROM cdn_image_jobs WHERE status = 'completed' GROUP BY asset_id HAVING count(*) > 1
""")
_TOO_MANY_RENDITIONS = sa.text(f"""
    SELECT asset_id, count(*) FROM cdn_image_renditions GROUP BY asset_id HAVING count(*) > {len(_SIZES)}
""")


def unfinished(world: World) -> Iterator[str]:
    """Open jobs, leases, and runs whose lock is still held."""
    with world.catalog.connect() as connection:
        for what, number in connection.execute(_UNFINISHED):
            if number:
                yield f"unfinished: {number} {what}"


_UNFINISHED = sa.text("""
    SELECT 'open jobs', count(*) FROM cdn_image_jobs WHERE status IN ('queued', 'processing')
    UNION ALL SELECT 'leases', count(*) FROM cdn_image_jobs WHERE lease_until IS NOT NULL
    UNION ALL SELECT 'runs that hold a lock', count(*) FROM pg_locks JOIN cdn_runs ON locktype = 'advisory'
        AND (classid::bigint << 32) | objid::bigint = lock_key
""")


def miscounted(world: World) -> Iterator[str]:
    """Statistics of all hours against the pictures in the stores. Moves the clock until the last hour has settled."""
    world.move_clock(2 * HOUR + SETTLES_IN)  # a clock that had jumped ended jobs in an hour ahead
    with world.catalog.connect() as connection:
        (first, last), ended = connection.execute(_HOURS).one(), connection.execute(_ENDED).one()
        hours = [first + n * HOUR for n in range((last - first) // HOUR + 1)] if first else []
        counted = [compute_hour(connection, hour) for hour in hours]
    objects, originals, downloaded = asyncio.run(_stored(world))
    completed, failed = sum(hour.jobs_completed for hour in counted), sum(hour.jobs_failed for hour in counted)
    if (completed, failed) != (ended.completed, ended.failed):
        yield f"miscounted: {completed} completed and {failed} failed jobs instead of {tuple(ended)}"
    if completed * len(_SIZES) != objects:
        yield f"miscounted: {completed} completed jobs, {objects} objects in the store"
    if completed != originals:
        yield f"miscounted: {completed} completed jobs, {originals} originals in the store"
    if (total := sum(hour.total_bytes_processed for hour in counted)) < downloaded:
        yield f"miscounted: {total} bytes processed, but the originals have {downloaded}"


# A clock that was set back may have ended a job before it began.
_HOURS = sa.text("""
    SELECT date_trunc('hour', min(least(created_at, completed_at)), 'UTC'),
           date_trunc('hour', max(greatest(created_at, completed_at)), 'UTC') FROM cdn_image_jobs
""")
_ENDED = sa.text("""
    SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
           count(*) FILTER (WHERE status = 'failed') AS failed FROM cdn_image_jobs
""")


async def _stored(world: World) -> tuple[int, int, int]:
    """Renditions, originals, and the bytes of the originals."""
    renditions = [key async for key in world.store(world.objects_url).list("th")]
    pages = [page async for page in world.store(world.originals_url).pages("originals")]
    originals = [listed for page in pages for listed in page]
    return len(renditions), len(originals), sum(listed.size for listed in originals)


def orphaned(world: World) -> Iterator[str]:
    """Processes of runs that have ended."""
    for process in world.orphans():
        yield f"orphan: {process}"
