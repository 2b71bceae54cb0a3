"""How things stand, whatever any run did: images lost on our watch, jobs left waiting, shards not read for long,
erasures that do not end.

Times are the catalog's own clock. `feasibility` tells what lies ahead.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import BACKFILL_PRIORITY, SHARDS, Collection
from cdn_pipeline.failures import FailureKind, Remedy
from cdn_pipeline.observe.thresholds import LOST_LATELY
from cdn_pipeline.queue.due import IS_DUE
from cdn_pipeline.queue.erasures import list_erasures
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage

MAX_SAMPLES = 20

# The source has answered, and the answer was no picture for us: it was not we who came too late.
REFUSALS = tuple(
    kind.value
    for kind in FailureKind
    if kind.remedy is not Remedy.TRANSIENT and kind is not FailureKind.SOURCE_URL_EXPIRED
)


@dataclass(frozen=True, slots=True)
class Watch:
    """Images whose present picture we do not have and cannot fetch any more, by who was late.

    `lost`: we were. A URL of the picture was alive when we saw it and has expired since, and the source had not refused
    it; `lost_lately` of these within `LOST_LATELY`. (An image whose source row is removed gets no fresh URL and stays
    lost.) `arrived_dead`: every URL of it had expired before we saw it. `samples` names up to 20 lost images, the
    latest loss first, by the id that `cdn-pipeline explain` takes.
    """

    lost: int
    lost_lately: int
    arrived_dead: int
    samples: tuple[str, ...]


def watch(connection: sa.Connection, collection: Collection) -> Watch:
    """Counts the images that were lost on our watch, and those that arrived dead.

    An image that failed for good is not lost: the source has answered.
    """
    values = {
        "collection": collection.name,
        "refusals": list(REFUSALS),
        "lately": LOST_LATELY,
        "samples": MAX_SAMPLES,
    }
    row = connection.execute(_WATCH, values).one()
    return Watch(row.lost, row.lost_lately, row.arrived_dead, tuple(row.samples))


# A completed image has the original of its present identity, so all that is missing is in the partial index of
# unfinished images. Their jobs are looked up image by image: a join would read the finished jobs of 90 days. 7 ms with
# 1,000 missing of 200,000 images, 0.1 s with 100,000 missing.
#
# A refusal speaks of the URL that was asked. It does not count for an image that was given a fresh URL and a new job
# since; it still counts after an operator's retry has asked the dead URL once more and has filed the image as expired.
_WATCH = sa.text(f"""
    WITH missing AS (
        SELECT id, shard, source_type, source_url, url_expires_at, seen_alive, removed_at, processing_status,
               failure_kind
        FROM cdn_image_assets
        WHERE collection = :collection AND processing_status <> 'completed'
          AND original_identity IS DISTINCT FROM identity
    ), lost AS (
        SELECT a.* FROM missing AS a CROSS JOIN LATERAL (
            SELECT coalesce(bool_or({IS_OPEN}), false) AS are_open,
                   coalesce(bool_or(j.source_url = a.source_url AND status = '{JobStatus.FAILED}'
                                    AND j.failure_kind = ANY(:refusals)), false) AS were_refused
            FROM cdn_image_jobs AS j WHERE asset_id = a.id
        ) AS jobs
        WHERE seen_alive AND processing_status = '{ImageStatus.PENDING}' AND url_expires_at < clock_timestamp()
          AND NOT were_refused AND (are_open OR coalesce(failure_kind <> ALL(:refusals), true))
    )
    SELECT (SELECT count(*) FROM lost) AS lost,
           (SELECT count(*) FROM lost WHERE url_expires_at > clock_timestamp() - CAST(:lately AS interval))
               AS lost_lately,
           (SELECT count(*) FROM missing WHERE NOT seen_alive) AS arrived_dead,
           ARRAY(SELECT format('%s (%s, shard %s): its URL expired %s UTC%s', id, source_type, shard,
                               to_char(url_expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'),
                               CASE WHEN removed_at IS NOT NULL THEN ', its source row is removed' END)
                 FROM lost ORDER BY url_expires_at DESC LIMIT :samples) AS samples
""")


@dataclass(frozen=True, slots=True)
class OldestDue:
    """How many jobs are due that somebody waits for, and which has been due longest: its age and shard.

    Backfills and re-encodings (priority 6 and later) are not counted: they wait for all others by design, for hours.
    Nor are jobs whose host is left alone; once it may be asked again they are due since then.
    """

    due: int
    age: timedelta | None
    shard: str | None

    @property
    def seconds(self) -> float | None:
        """Its age; None if none is due."""
        return None if self.age is None else self.age.total_seconds()


def oldest_due(connection: sa.Connection, collection: Collection) -> OldestDue:
    """Looks for the job that has been due longest."""
    values = {"collection": collection.name, "bulk": BACKFILL_PRIORITY}
    row = connection.execute(_OLDEST_DUE, values).one_or_none()
    return OldestDue(row.due, row.age, row.shard) if row else OldestDue(0, None, None)


_DUE_SINCE = "greatest(created_at, next_attempt_at, retry_at)"

_OLDEST_DUE = sa.text(f"""
    SELECT count(*) OVER () AS due, clock_timestamp() - {_DUE_SINCE} AS age, shard
    FROM cdn_image_jobs
    LEFT JOIN (SELECT host AS asked, retry_at FROM cdn_hosts) AS hosts ON stage = '{Stage.DOWNLOAD}' AND host = asked
    WHERE collection = :collection AND priority < :bulk AND {IS_DUE} AND coalesce(retry_at <= clock_timestamp(), true)
    ORDER BY {_DUE_SINCE} LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Scans:
    """When shards were last read in full. `stale` are those not read within the limit, in order.

    One that was never read in full is stale when that is so since the first run, and so not at once in a first
    backfill. `begun` is false as long as nothing was read at all.
    """

    begun: bool
    stale: tuple[str, ...]
    oldest: datetime | None  # of the shards that were read in full


def scans(connection: sa.Connection, collection: Collection, limit: timedelta) -> Scans:
    """Looks for shards whose last full scan is longer ago than `limit`."""
    values = {"collection": collection.name, "shards": list(SHARDS), "limit": limit}
    row = connection.execute(_SCANS, values).one()
    return Scans(row.begun, tuple(row.stale or ()), row.oldest)


# Who deletes old rows of cdn_runs may do so: the oldest full scan is as good a beginning.
_SCANS = sa.text("""
    WITH scanned AS (
        SELECT s.shard, w.shard IS NOT NULL AS begun, w.fully_scanned_at
        FROM unnest(CAST(:shards AS text[])) AS s(shard)
        LEFT JOIN cdn_source_watermarks w ON w.shard = s.shard AND w.collection = :collection
    ), first AS (
        SELECT least((SELECT min(started_at) FROM cdn_runs), min(fully_scanned_at)) AS moment FROM scanned
    )
    SELECT bool_or(begun) AS begun, min(fully_scanned_at) AS oldest,
           array_agg(shard ORDER BY shard)
               FILTER (WHERE coalesce(fully_scanned_at, moment) < clock_timestamp() - CAST(:limit AS interval)) AS stale
    FROM scanned CROSS JOIN first
""")


@dataclass(frozen=True, slots=True)
class UnfinishedErasures:
    """How many erasures are open or wait for a purge; `old` names those asked for longer ago than the limit."""

    count: int
    old: tuple[str, ...]


def unfinished_erasures(connection: sa.Connection, collection: Collection, limit: timedelta) -> UnfinishedErasures:
    """Looks for erasures that somebody has asked for and that have not come to their end."""
    found, now = list_erasures(connection, collection, unfinished=True), catalog_time(connection)
    old = [each for each in found if now - each.created_at > limit]
    words = (f"{each.scope} {each.owner_id}, {each.state}: {each.problem or 'interrupted'}" for each in old)
    return UnfinishedErasures(len(found), tuple(words))
