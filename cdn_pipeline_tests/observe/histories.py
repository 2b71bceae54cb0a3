"""Histories of jobs, written straight into the catalog, and a naive count of an hour of them.

The count shares nothing with the one under test: it asks of every moment at which anything changes how many jobs are
open, and of every stretch between two such moments whether any job was in hand.
"""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import HOUR, HourStats
from cdn_pipeline.queue.leases import LEASE

Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Job:
    """One job's whole life. `busy` are its ended attempts; one that is in hand has `started_at` and `renewed_at`."""

    status: str
    created_at: datetime
    completed_at: datetime | None = None
    busy: tuple[Span, ...] = ()
    started_at: datetime | None = None
    renewed_at: datetime | None = None
    failure_kind: str | None = None
    download_ms: int | None = None
    transcode_ms: int | None = None
    upload_ms: int | None = None
    bytes_in: int | None = None

    @property
    def in_hand(self) -> tuple[Span, ...]:
        """All stretches of time that a run vouches for."""
        if self.started_at is None or self.renewed_at is None:
            return self.busy
        return (*self.busy, (self.started_at, self.renewed_at))

    def open_at(self, moment: datetime) -> bool:
        return self.created_at <= moment and (self.completed_at is None or moment < self.completed_at)


def write(connection: sa.Connection, jobs: Sequence[Job]) -> None:
    """Every job gets an image of its own."""
    rows = [_row(job) for job in jobs]
    connection.execute(_WRITE, {"rows": json.dumps(rows, default=str)})


def _row(job: Job) -> dict[str, Any]:
    return {
        **asdict(job),
        "asset_id": uuid.uuid4(),
        "busy": "{" + ",".join(f"[{start},{end})" for start, end in job.busy) + "}",
        "lease_until": job.renewed_at and job.renewed_at + LEASE,
    }


_WRITE = sa.text("""
    WITH jobs AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS j(
            asset_id uuid, status text, created_at timestamptz, completed_at timestamptz, busy tstzmultirange,
            started_at timestamptz, lease_until timestamptz, failure_kind text, download_ms int, transcode_ms int,
            upload_ms int, bytes_in bigint)
    ), images AS (
        INSERT INTO cdn_image_assets (id, collection, shard, owner_id, source_type, source_id, media_id, source_url,
                                      identity, rank, observed_at)
        SELECT asset_id, 'instagram', '00', 'owner', 'profile_avatar', asset_id, 'avatar', '', '', 1, now() FROM jobs
    )
    INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url, status, created_at, completed_at,
        busy, started_at, lease_until, failure_kind, download_ms, transcode_ms, upload_ms, bytes_in)
    SELECT asset_id, 'instagram', '00', 'ingest', '', status, created_at, completed_at, busy, started_at, lease_until,
           failure_kind, download_ms, transcode_ms, upload_ms, bytes_in
    FROM jobs
""")


# -- the naive count --


def count(jobs: Sequence[Job], hour: datetime) -> HourStats:
    """What happened in the hour, in the plainest way."""
    ended = [job for job in jobs if job.status in ("completed", "failed") and _within(hour, job.completed_at)]
    failed = [job for job in ended if job.status == "failed"]
    completed = [job for job in ended if job.status == "completed"]
    sizes = _known(job.bytes_in for job in ended)
    return HourStats(
        date=hour.date(),
        hour=hour.hour,
        jobs_processed=len(ended),
        jobs_failed=len(failed),
        avg_processing_time_ms=_mean(
            [(job.download_ms or 0) + (job.transcode_ms or 0) + (job.upload_ms or 0) for job in completed]
        ),
        avg_download_time_ms=_mean(_known(job.download_ms for job in ended)),
        avg_upload_time_ms=_mean(_known(job.upload_ms for job in ended)),
        total_bytes_processed=sum(sizes),
        avg_file_size_bytes=_mean(sizes),
        error_categories=dict(Counter(str(job.failure_kind) for job in failed)),
        peak_queue_depth=_peak(jobs, hour),
        worker_utilization_percent=_utilization(jobs, hour),
    )


def _within(hour: datetime, moment: datetime | None) -> bool:
    return moment is not None and hour <= moment < hour + HOUR


def _known(values: Iterable[int | None]) -> list[int]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[int]) -> int:
    return _nearest(Fraction(sum(values), len(values))) if values else 0


def _nearest(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


def _peak(jobs: Sequence[Job], hour: datetime) -> int:
    # A queue grows only when a job is created.
    moments = [hour, *(job.created_at for job in jobs if _within(hour, job.created_at))]
    return max(sum(job.open_at(moment) for job in jobs) for moment in moments)


def _utilization(jobs: Sequence[Job], hour: datetime) -> int:
    spans = [span for job in jobs for span in job.in_hand]
    edges = sorted({hour, hour + HOUR, *(edge for span in spans for edge in span if _within(hour, edge))})
    stretches = [
        later - earlier
        for earlier, later in pairwise(edges)
        if any(start <= earlier and later <= end for start, end in spans)
    ]
    busy = sum(stretches, timedelta())
    return _nearest(Fraction(100 * (busy // timedelta(microseconds=1)), HOUR // timedelta(microseconds=1)))


# -- histories --

_MILLISECONDS = st.none() | st.integers(0, 60_000)
_BYTES = st.none() | st.integers(0, 50_000_000)


def histories(first: datetime, last: datetime) -> st.SearchStrategy[list[Job]]:
    """Jobs between two moments. Times are coarse: many fall together, and often on the edges of hours."""
    edges = st.integers(0, (last - first) // HOUR - 1).map(lambda number: first + number * HOUR)
    ticks = st.integers(0, (last - first) // _TICK - 1).map(lambda number: first + number * _TICK)
    odd = st.builds(lambda tick, more: tick + more, ticks, st.sampled_from((timedelta.resolution, 17 * _SECOND)))
    return st.lists(_jobs(edges | ticks | odd), max_size=12)


_SECOND = timedelta(seconds=1)
_TICK = timedelta(minutes=10)


@st.composite
def _jobs(draw: Callable[[st.SearchStrategy[Any]], Any], moments: st.SearchStrategy[datetime]) -> Job:
    status = draw(st.sampled_from(("completed", "completed", "failed", "queued", "processing", "cancelled")))
    attempts = draw(st.integers(0, 3))
    created_at, *times = sorted(draw(st.lists(moments, min_size=2 * attempts + 3, max_size=2 * attempts + 3)))
    *busy_times, earlier, later = times
    ended = status in ("completed", "failed", "cancelled")
    return Job(
        status=status,
        created_at=created_at,
        completed_at=later if ended else None,
        busy=tuple(zip(busy_times[::2], busy_times[1::2], strict=True)),
        started_at=earlier if status == "processing" else None,
        renewed_at=later if status == "processing" else None,
        failure_kind=draw(st.sampled_from(FailureKind)).value if status == "failed" else None,
        download_ms=draw(_MILLISECONDS) if ended else None,
        transcode_ms=draw(_MILLISECONDS) if ended else None,
        upload_ms=draw(_MILLISECONDS) if ended else None,
        bytes_in=draw(_BYTES) if ended else None,
    )
