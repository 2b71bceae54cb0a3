"""The independent count: a log of everything that happens to jobs, and the statistics of hours replayed from it.

A trigger writes the log, row by row. The replay is plain Python: it reads neither the jobs table nor the column `busy`,
and shares no code with `cdn_pipeline.observe.stats`, only the definitions.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

HOUR = timedelta(hours=1)

_LEASE = timedelta(seconds=60)
_UNKNOWN = "internal_error"

# A row's own times are a moment older than the log's, which is written when the statement ends, and `created_at` is
# when the transaction began. Further apart they contradict each other.
_TOLERANCE = timedelta(seconds=10)

_INSTALL = """
    CREATE TABLE public.job_history (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        was jsonb,
        became jsonb
    );
    CREATE FUNCTION public.note_job() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.job_history (was, became) VALUES (to_jsonb(OLD) - 'busy', to_jsonb(NEW) - 'busy');
            RETURN NULL;
        END
    $$;
    CREATE TRIGGER job_history AFTER INSERT OR UPDATE OR DELETE ON cdn_image_jobs
        FOR EACH ROW EXECUTE FUNCTION public.note_job()
"""


class ContradictionError(Exception):
    """A job's row names a time that is not when the log saw it happen."""


def install(catalog: sa.Engine) -> None:
    """Begins the log, in a migrated catalog on a simulated clock."""
    with catalog.begin() as connection:
        connection.execute(sa.text(_INSTALL))


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time; its end does not belong to it."""

    start: datetime
    end: datetime


@dataclass(slots=True)
class Job:
    """A job as the log tells it: its life, and when a run had it in hand."""

    created_at: datetime
    row: Mapping[str, Any]  # as noted last
    ended_at: datetime | None = None
    in_hand: list[Span] = field(default_factory=list)

    def is_open(self, moment: datetime) -> bool:
        """Whether it stood in the queue then."""
        return self.created_at <= moment and (self.ended_at is None or moment < self.ended_at)


def replay(connection: sa.Connection) -> list[Job]:
    """All jobs, from the log alone.

    Raises:
        ContradictionError: a row and the log disagree about when something happened.
    """
    jobs: dict[uuid.UUID, Job] = {}
    query = sa.text("SELECT noted_at, was, became FROM public.job_history ORDER BY number")
    for noted_at, was, became in connection.execute(query):
        if became is None:
            del jobs[was["id"]]
        elif was is None:
            jobs[became["id"]] = Job(_time(became, "created_at", noted_at), became)
        else:
            _follow(jobs[became["id"]], was, became, noted_at)
    return list(jobs.values())


def _follow(job: Job, was: Mapping[str, Any], became: Mapping[str, Any], noted_at: datetime) -> None:
    job.row = became
    if became["status"] in ("completed", "failed") and was["status"] != became["status"]:
        job.ended_at = _time(became, "completed_at", noted_at)
    if was["status"] == "processing" and (became["status"], became["started_at"]) != ("processing", was["started_at"]):
        job.in_hand.append(Span(_moment(was["started_at"]), _let_go_at(was, became, noted_at)))


def _let_go_at(was: Mapping[str, Any], became: Mapping[str, Any], noted_at: datetime) -> datetime:
    """When the run wrote what came of it, with it when the job is due next.

    If it did not, or had lost its lease by then, when it last renewed the lease.
    """
    lease_until = _moment(was["lease_until"])
    if was["next_attempt_at"] != became["next_attempt_at"]:
        written_at = _time(became, "updated_at", noted_at)
        if written_at <= lease_until:
            return written_at
    return lease_until - _LEASE


def _time(row: Mapping[str, Any], column: str, noted_at: datetime) -> datetime:
    stated = _moment(row[column])
    if abs(noted_at - stated) > _TOLERANCE:
        raise ContradictionError(f"job {row['id']}: {column} is {stated}, but it happened at {noted_at}")
    return stated


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def count_hour(jobs: Iterable[Job], start: datetime) -> dict[str, Any]:
    """What `cdn_processing_stats` must say of the hour that begins at `start`."""
    end = start + HOUR
    alive = [job for job in jobs if job.created_at < end and (job.ended_at is None or job.ended_at >= start)]
    ended = [job.row for job in alive if job.ended_at is not None and job.ended_at < end]
    completed = [row for row in ended if row["status"] == "completed"]
    failed = [row for row in ended if row["status"] == "failed"]
    return {
        "jobs_processed": len(ended),
        "jobs_failed": len(failed),
        "avg_processing_time_ms": _mean([_total_ms(row) for row in completed]),
        "avg_download_time_ms": _mean(_known(ended, "download_ms")),
        "avg_upload_time_ms": _mean(_known(ended, "upload_ms")),
        "total_bytes_processed": sum(_known(ended, "bytes_in")),
        "avg_file_size_bytes": _mean(_known(ended, "bytes_in")),
        "error_categories": dict(Counter(row["failure_kind"] or _UNKNOWN for row in failed)),
        "peak_queue_depth": _peak(alive, start, end),
        "worker_utilization_percent": _utilization(alive, start, end),
    }


def _total_ms(row: Mapping[str, Any]) -> int:
    return sum(row[stage] or 0 for stage in ("download_ms", "transcode_ms", "upload_ms"))


def _known(rows: Iterable[Mapping[str, Any]], column: str) -> list[int]:
    return [row[column] for row in rows if row[column] is not None]


def _mean(values: Sequence[int]) -> int:
    return _nearest(sum(values), len(values)) if values else 0


def _nearest(dividend: int, divisor: int) -> int:
    """The quotient of whole numbers, a half rounded up."""
    return (2 * dividend + divisor) // (2 * divisor)


def _peak(jobs: Sequence[Job], start: datetime, end: datetime) -> int:
    """The queue is deepest at its first moment or when a job comes."""
    moments = {start, *(job.created_at for job in jobs if start <= job.created_at < end)}
    return max(sum(job.is_open(moment) for job in jobs) for moment in moments)


def _utilization(jobs: Iterable[Job], start: datetime, end: datetime) -> int:
    spans = (Span(max(span.start, start), min(span.end, end)) for job in jobs for span in job.in_hand)
    busy = sum((span.end - span.start for span in _merged(spans)), timedelta())
    return _nearest(100 * (busy // timedelta.resolution), HOUR // timedelta.resolution)


def _merged(spans: Iterable[Span]) -> Iterator[Span]:
    """What any of the spans covers, once."""
    covered_until: datetime | None = None
    for span in sorted((span for span in spans if span.start < span.end), key=lambda span: span.start):
        start = span.start if covered_until is None else max(span.start, covered_until)
        if start < span.end:
            yield Span(start, span.end)
            covered_until = span.end


@dataclass(frozen=True, slots=True)
class Comparison:
    """Stored hours against the independent count: hours that nobody stored, and what differs, in words."""

    hours: int
    missing: tuple[datetime, ...]
    differences: tuple[str, ...]
    jobs: int  # that ended in these hours, by the log


def compare(connection: sa.Connection, first: datetime, hours: int) -> Comparison:
    """Compares every column of so many hours from `first` on."""
    stored = {
        row["start"]: row
        for row in connection.execute(
            sa.text(
                "SELECT (date + make_interval(hours => hour)) AT TIME ZONE 'UTC' AS start, * FROM cdn_processing_stats"
            )
        ).mappings()
    }
    jobs = replay(connection)
    starts = [first + number * HOUR for number in range(hours)]
    counted = {start: count_hour(jobs, start) for start in starts}
    return Comparison(
        hours=hours,
        missing=tuple(start for start in starts if start not in stored),
        differences=tuple(
            f"{start:%Y-%m-%d %H:%M} {column}: stored {stored[start][column]}, counted {value}"
            for start in starts
            if start in stored
            for column, value in counted[start].items()
            if stored[start][column] != value
        ),
        jobs=sum(count["jobs_processed"] for count in counted.values()),
    )
