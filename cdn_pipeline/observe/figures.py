"""What the jobs of the last day say: how many, how fast, and what went wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind, Remedy
from cdn_pipeline.observe.thresholds import HEALTH_WINDOW
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.leases import BUSY_UNTIL_LAST_RENEWAL
from cdn_pipeline.queue.states import JobStatus

RATE_WINDOW = timedelta(hours=1)  # of "per hour" and of utilization

# It is the source URL that was refused, not the host that failed or the picture that was bad.
SOURCE_URL_FAILURES = frozenset(
    {kind for kind in FailureKind if kind.remedy is Remedy.FRESH_URL} | {FailureKind.SOURCE_GONE}
)


@dataclass(frozen=True, slots=True)
class Jobs:
    """Jobs that ended within `HEALTH_WINDOW`, and what their stages took. Milliseconds; None without any to take it of.

    `processing` is download, transcode and upload of a completed job together, without waiting for a turn.
    """

    completed: int
    failed: int
    ended_last_hour: int
    mean_processing_ms: int | None
    p95_processing_ms: int | None
    mean_download_ms: int | None
    mean_upload_ms: int | None
    retried: int  # that took more than one attempt
    retried_completed: int  # of those
    source_url_failed: int  # because of `SOURCE_URL_FAILURES`

    @property
    def ended(self) -> int:
        """Completed or failed."""
        return self.completed + self.failed

    @property
    def retry_success_rate(self) -> float | None:
        """Of the retried ones, 0 to 1."""
        return self.retried_completed / self.retried if self.retried else None

    @property
    def source_url_failure_rate(self) -> float | None:
        """Of those that ended, 0 to 1."""
        return self.source_url_failed / self.ended if self.ended else None


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """A kind of failure, and how many jobs failed with it or are being retried after it."""

    kind: str  # as the catalog names it: perhaps none of this version's
    jobs: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The last day in numbers; `utilization` is the share of the last hour in which any run had a job in hand."""

    jobs: Jobs
    errors: Sequence[ErrorCount]  # most jobs first
    utilization: float


def figures(connection: sa.Connection, collection: Collection) -> Figures:
    """Counts them; 0.3 s with 150,000 jobs that ended in the last day and as many open ones."""
    values = {
        "collection": collection.name,
        "day": HEALTH_WINDOW,
        "hour": RATE_WINDOW,
        "source_urls": sorted(SOURCE_URL_FAILURES),
    }
    return Figures(
        jobs=Jobs(**connection.execute(_JOBS, values).mappings().one()),
        errors=_errors(connection.execute(_ERRORS, values).all()),
        utilization=connection.execute(_UTILIZATION, values).scalar_one(),
    )


def _errors(rows: Sequence[sa.Row[Any]]) -> Sequence[ErrorCount]:
    return [ErrorCount(row.kind, row.jobs) for row in rows]


_ENDED = f"status IN ('{JobStatus.COMPLETED}', '{JobStatus.FAILED}')"
_SINCE_A_DAY = "completed_at > now() - CAST(:day AS interval)"
_IS_COMPLETED = f"status = '{JobStatus.COMPLETED}'"
_IS_FAILED = f"status = '{JobStatus.FAILED}'"

_JOBS = sa.text(f"""
    SELECT count(*) FILTER (WHERE {_IS_COMPLETED}) AS completed,
           count(*) FILTER (WHERE {_IS_FAILED}) AS failed,
           count(*) FILTER (WHERE completed_at > now() - CAST(:hour AS interval)) AS ended_last_hour,
           round(avg(total_ms) FILTER (WHERE {_IS_COMPLETED}))::int AS mean_processing_ms,
           percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms) FILTER (WHERE {_IS_COMPLETED}) AS p95_processing_ms,
           round(avg(download_ms))::int AS mean_download_ms, round(avg(upload_ms))::int AS mean_upload_ms,
           count(*) FILTER (WHERE retry_count > 0) AS retried,
           count(*) FILTER (WHERE retry_count > 0 AND {_IS_COMPLETED}) AS retried_completed,
           count(*) FILTER (WHERE {_IS_FAILED} AND failure_kind = ANY(:source_urls)) AS source_url_failed
    FROM (
        SELECT *, coalesce(download_ms, 0) + coalesce(transcode_ms, 0) + coalesce(upload_ms, 0) AS total_ms
        FROM cdn_image_jobs WHERE collection = :collection AND {_ENDED} AND {_SINCE_A_DAY}
    ) AS ended
""")

_ERRORS = sa.text(f"""
    SELECT kind, count(*) AS jobs FROM (
        SELECT coalesce(failure_kind, '{FailureKind.INTERNAL_ERROR}') AS kind FROM cdn_image_jobs
        WHERE collection = :collection AND {_IS_FAILED} AND {_SINCE_A_DAY}
        UNION ALL
        SELECT failure_kind FROM cdn_image_jobs
        WHERE collection = :collection AND {IS_OPEN} AND retry_count > 0 AND failure_kind IS NOT NULL
    ) AS failures GROUP BY kind ORDER BY jobs DESC, kind
""")

_UTILIZATION = sa.text(f"""
    WITH window_of AS (
        SELECT tstzmultirange(tstzrange(now() - CAST(:hour AS interval), now())) AS hour
    ), jobs AS (
        SELECT busy FROM cdn_image_jobs
        WHERE collection = :collection AND completed_at > now() - CAST(:hour AS interval)
        UNION ALL
        SELECT CASE WHEN status = '{JobStatus.PROCESSING}' THEN busy + {BUSY_UNTIL_LAST_RENEWAL} ELSE busy END
        FROM cdn_image_jobs WHERE collection = :collection AND {IS_OPEN}
    ), spans AS (
        SELECT unnest(range_agg(busy * hour)) AS span FROM jobs CROSS JOIN window_of
    )
    SELECT CAST(coalesce(extract(epoch FROM sum(upper(span) - lower(span))), 0)
                / extract(epoch FROM CAST(:hour AS interval)) AS float8) FROM spans
""")
