"""Statistics of an hour (UTC), from the rows of `cdn_image_jobs` alone: exact, and the same whenever they are made.

An hour is counted once it has settled, a lease after its end. By then every job in hand was renewed after the end or
has lost its lease, so how long it was worked on within the hour is decided; and what was written in the hour is
committed. An erased image leaves its jobs behind, with their numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.engine.tally import NOT_IN_RATE
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.storage import storage
from cdn_pipeline.queue.housekeeping import JOBS_KEPT
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.leases import BUSY_UNTIL_LAST_RENEWAL, LEASE
from cdn_pipeline.queue.states import JobStatus

HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)
SETTLES_IN = LEASE


class HourNotOverError(Exception):
    """The hour is not over by the catalog's clock, or has not settled yet."""


class HourTooOldError(Exception):
    """The hour began before the oldest job that is certain to be kept: it is refused instead of being counted wrong."""


@dataclass(frozen=True, slots=True)
class HourStats:
    """A row of `cdn_processing_stats`: means are 0 if there is nothing to take them of; all are rounded to nearest."""

    date: date
    hour: int  # 0-23, UTC
    jobs_processed: int  # that ended within the hour, completed or failed
    jobs_failed: int  # of those
    avg_processing_time_ms: int  # download, transcode and upload of completed jobs; without waiting for a turn
    avg_download_time_ms: int  # of the processed jobs that have it; likewise below
    avg_upload_time_ms: int
    total_bytes_processed: int  # downloaded
    avg_file_size_bytes: int
    error_categories: Mapping[str, int]  # failed jobs by failure kind
    peak_queue_depth: int  # most jobs open at one moment
    worker_utilization_percent: int  # share of the hour in which any run had a job in hand

    @property
    def start(self) -> datetime:
        """The first moment of the hour."""
        return datetime.combine(self.date, time(self.hour), UTC)

    @property
    def jobs_completed(self) -> int:
        """Processed jobs that did not fail."""
        return self.jobs_processed - self.jobs_failed

    @property
    def success_rate(self) -> float | None:
        """Completed of (completed + failed), 0 to 1, without images that are gone or expired; None without any."""
        judged = self.jobs_processed - sum(self.error_categories.get(kind, 0) for kind in NOT_IN_RATE)
        return self.jobs_completed / judged if judged else None

    @property
    def jobs_per_second(self) -> float:
        """Processed jobs, over the whole hour."""
        return self.jobs_processed / HOUR.total_seconds()


def compute_hour(connection: sa.Connection, hour: datetime) -> HourStats:
    """Counts the hour that begins at `hour`.

    Reads what is open, and what was finished since the hour began, as that may have been open in it: 20 ms for an hour
    of today, 50 ms for one of 85 days ago (5,000 open and 200,000 finished jobs).

    Raises:
        HourNotOverError: it is not over, or has not settled.
        HourTooOldError: its jobs may be gone.
        ValueError: `hour` is not the first moment of an hour, or names no time zone.
    """
    start = _start_of_hour(hour)
    _refuse_unknowable(start, catalog_time(connection).astimezone(UTC))
    numbers = connection.execute(_COMPUTE, {"start": start, "end": start + HOUR}).mappings().one()
    return HourStats(date=start.date(), hour=start.hour, **numbers)


def _start_of_hour(hour: datetime) -> datetime:
    start = hour.astimezone(UTC)
    if hour.tzinfo is None or (start.minute, start.second, start.microsecond) != (0, 0, 0):
        raise ValueError(f"{hour.isoformat()} is not the first moment of an hour with its time zone")
    return start


def _refuse_unknowable(start: datetime, now: datetime) -> None:
    end = start + HOUR
    if now < end + SETTLES_IN:
        raise HourNotOverError(
            f"the hour {start:%Y-%m-%d %H:%M} UTC is over at {end:%H:%M} and settled at {end + SETTLES_IN:%H:%M}; "
            f"now it is {now:%Y-%m-%d %H:%M:%S}"
        )
    if start < now - JOBS_KEPT:
        raise HourTooOldError(
            f"the hour {start:%Y-%m-%d %H:%M} UTC began more than {JOBS_KEPT.days} days ago: its jobs may be deleted, "
            "and what was counted when they were there stays as it is"
        )


# Ended and open jobs are read apart, so that each has its partial index. A clock that was set back may have ended a job
# before it began: such a job counts as ended, and never as open.
#
# The queue's depth is swept over the ends of the intervals [created_at, completed_at): a running sum of +1 and -1, at
# one moment the ends before the starts. None of these jobs ended before the hour and none began after it, so the sum is
# never higher outside of the hour than within.
_COMPUTE = sa.text(f"""
    WITH jobs AS (
        SELECT status, created_at, completed_at, busy, failure_kind, download_ms, transcode_ms, upload_ms, bytes_in
        FROM cdn_image_jobs WHERE completed_at >= :start AND least(created_at, completed_at) < :end
        UNION ALL
        SELECT status, created_at, NULL,
               CASE WHEN status = '{JobStatus.PROCESSING}' THEN busy + {BUSY_UNTIL_LAST_RENEWAL} ELSE busy END,
               NULL, NULL, NULL, NULL, NULL
        FROM cdn_image_jobs WHERE {IS_OPEN} AND created_at < :end
    ), ended AS (
        SELECT *, status = '{JobStatus.COMPLETED}' AS completed, status = '{JobStatus.FAILED}' AS failed,
               coalesce(download_ms, 0) + coalesce(transcode_ms, 0) + coalesce(upload_ms, 0) AS total_ms
        FROM jobs WHERE completed_at < :end AND status IN ('{JobStatus.COMPLETED}', '{JobStatus.FAILED}')
    ), figures AS (
        SELECT count(*) AS jobs_processed, count(*) FILTER (WHERE failed) AS jobs_failed,
               coalesce(round(avg(total_ms) FILTER (WHERE completed)), 0)::int AS avg_processing_time_ms,
               coalesce(round(avg(download_ms)), 0)::int AS avg_download_time_ms,
               coalesce(round(avg(upload_ms)), 0)::int AS avg_upload_time_ms,
               coalesce(sum(bytes_in), 0)::bigint AS total_bytes_processed,
               coalesce(round(avg(bytes_in)), 0)::int AS avg_file_size_bytes
        FROM ended
    ), errors AS (
        SELECT coalesce(jsonb_object_agg(kind, jobs), '{{}}') AS error_categories
        FROM (SELECT coalesce(failure_kind, '{FailureKind.INTERNAL_ERROR}') AS kind, count(*) AS jobs
              FROM ended WHERE failed GROUP BY kind) AS by_kind
    ), open_in_hour AS (
        SELECT created_at, completed_at FROM jobs
        WHERE created_at < :end AND coalesce(completed_at > greatest(created_at, :start), true)
    ), steps AS (
        SELECT created_at AS moment, 1 AS step FROM open_in_hour
        UNION ALL
        SELECT completed_at, -1 FROM open_in_hour WHERE completed_at IS NOT NULL
    ), depths AS (
        SELECT sum(step) OVER (ORDER BY moment, step) AS jobs FROM steps
    ), peak AS (
        SELECT coalesce(max(jobs), 0) AS peak_queue_depth FROM depths
    ), spans AS (
        SELECT unnest(range_agg(busy) * tstzmultirange(tstzrange(:start, :end))) AS span FROM jobs
    ), utilization AS (
        SELECT coalesce(round(100 * extract(epoch FROM sum(upper(span) - lower(span))) / 3600), 0)::int
               AS worker_utilization_percent
        FROM spans
    )
    SELECT * FROM figures, errors, peak, utilization
""")


def write_hour(connection: sa.Connection, stats: HourStats) -> None:
    """Stores the hour in place of what was stored of it."""
    connection.execute(_WRITE, asdict(stats))


_COLUMNS = tuple(field.name for field in fields(HourStats))

_WRITE = sa.text(f"""
    INSERT INTO cdn_processing_stats ({", ".join(_COLUMNS)}) VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
    ON CONFLICT (date, hour) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}, updated_at = clock_timestamp()
""").bindparams(sa.bindparam("error_categories", type_=JSONB))


def note_storage(connection: sa.Connection, stats: HourStats) -> None:
    """Stores what the stores hold now beside the hour that has just passed.

    A reading, not a count: it stays when the hour is counted again, and an hour that is long over gets none.
    """
    if catalog_time(connection) < stats.start + 2 * HOUR:
        found = storage(connection)
        values = {"date": stats.date, "hour": stats.hour, "bytes": found.bytes, "objects": found.objects}
        connection.execute(_NOTE_STORAGE, values)


_NOTE_STORAGE = sa.text("""
    UPDATE cdn_processing_stats SET storage_bytes = :bytes, storage_objects = :objects, updated_at = clock_timestamp()
    WHERE date = :date AND hour = :hour AND storage_bytes IS NULL
""")


@dataclass(frozen=True, slots=True)
class StorageGrowth:
    """What the stores held when they were last read, and a week before; in bytes."""

    before: int
    now: int


def storage_growth(connection: sa.Connection) -> StorageGrowth | None:
    """Compares the latest reading with the one a week before it; None before there is a week of readings."""
    row = connection.execute(_GROWTH, {"week": WEEK, "at_most": WEEK + timedelta(days=1)}).mappings().one_or_none()
    return StorageGrowth(**row) if row else None


def latest_hours(connection: sa.Connection, count: int) -> Sequence[HourStats]:
    """The latest hours that are stored, at most so many, the latest first."""
    return _stored(connection, _LATEST, count=count)


_LATEST = sa.text(f"""
    SELECT {", ".join(_COLUMNS)} FROM cdn_processing_stats ORDER BY date DESC, hour DESC LIMIT :count
""")


def stored_between(connection: sa.Connection, start: datetime, end: datetime) -> Sequence[HourStats]:
    """The stored hours that began from `start` on and before `end`, the earliest first."""
    return _stored(connection, _STORED_BETWEEN, since=start, until=end)


@dataclass(frozen=True, slots=True)
class HourComparison:
    """A stored hour, and what its jobs say today."""

    stored: HourStats
    computed: HourStats

    @property
    def differences(self) -> Mapping[str, tuple[Any, Any]]:
        """(stored, computed) by column, of the columns that differ."""
        stored, computed = asdict(self.stored), asdict(self.computed)
        return {name: (stored[name], computed[name]) for name in _COLUMNS if stored[name] != computed[name]}


def compare_hours(connection: sa.Connection, within: timedelta) -> Sequence[HourComparison]:
    """Counts the stored hours again that began within this time until now; the earliest first.

    Raises:
        HourTooOldError: it reaches back further than jobs are kept.
    """
    stored = _stored(connection, _STORED_SINCE, since=catalog_time(connection).astimezone(UTC) - within)
    return [HourComparison(stats, compute_hour(connection, stats.start)) for stats in stored]


_STARTS = "(date + make_interval(hours => hour)) AT TIME ZONE 'UTC'"

_STORED_SINCE = sa.text(f"""
    SELECT {", ".join(_COLUMNS)} FROM cdn_processing_stats WHERE {_STARTS} >= :since ORDER BY date, hour
""")

_STORED_BETWEEN = sa.text(f"""
    SELECT {", ".join(_COLUMNS)} FROM cdn_processing_stats
    WHERE {_STARTS} >= :since AND {_STARTS} < :until ORDER BY date, hour
""")


def missing_hours(connection: sa.Connection, within: timedelta) -> Sequence[datetime]:
    """The hours that began within this time, ended an hour ago or earlier and are not stored; the earliest first.

    None before the first hour that was ever stored; and none that the next count may only just have begun.
    """
    now = catalog_time(connection).astimezone(UTC)
    values = {"since": now - within, "until": now - 2 * HOUR}
    return [each.astimezone(UTC) for each in connection.scalars(_MISSING, values)]


_MISSING = sa.text(f"""
    WITH stored AS (SELECT {_STARTS} AS hour FROM cdn_processing_stats)
    SELECT hour FROM generate_series(
        date_trunc('hour', CAST(:since AS timestamptz), 'UTC'), CAST(:until AS timestamptz), interval '1 hour') AS hour
    WHERE hour >= :since AND hour > (SELECT min(hour) FROM stored) AND hour NOT IN (SELECT hour FROM stored)
    ORDER BY hour
""")


# Where the hour of a week ago has no reading, an earlier one of the day before it will do.
_GROWTH = sa.text(f"""
    WITH readings AS (
        SELECT {_STARTS} AS moment, storage_bytes FROM cdn_processing_stats WHERE storage_bytes IS NOT NULL
    ), latest AS (
        SELECT moment, storage_bytes FROM readings ORDER BY moment DESC LIMIT 1
    )
    SELECT earlier.storage_bytes AS before, latest.storage_bytes AS now
    FROM latest JOIN readings AS earlier ON earlier.moment <= latest.moment - CAST(:week AS interval)
                                        AND earlier.moment >= latest.moment - CAST(:at_most AS interval)
    ORDER BY earlier.moment DESC LIMIT 1
""")


def _stored(connection: sa.Connection, query: sa.TextClause, **parameters: Any) -> list[HourStats]:
    return [HourStats(**row) for row in connection.execute(query, parameters).mappings()]
