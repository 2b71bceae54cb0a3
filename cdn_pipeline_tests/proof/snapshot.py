"""What the catalog says at one moment, and what a step of the machine did between two of them."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.rows import dict_row

from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.leases import LEASE
from cdn_pipeline.queue.outcomes import Outcome

Row = Mapping[str, Any]
Times = list[tuple[datetime, datetime]]

_EVERYTHING = "SELECT * FROM cdn_image_assets; SELECT * FROM cdn_image_jobs; SELECT * FROM cdn_image_renditions"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows, by id."""

    images: dict[uuid.UUID, Row]
    jobs: dict[uuid.UUID, Row]
    renditions: dict[uuid.UUID, Row]

    @classmethod
    def of(cls, engine: sa.Engine) -> "Snapshot":
        """The catalog now, in one round trip: it is asked for after every step."""
        with engine.connect() as connection:
            driver = cast(psycopg.Connection, connection.connection.driver_connection)
            cursor = driver.cursor(row_factory=dict_row).execute(_EVERYTHING)
            images, jobs, renditions = (_by_id(rows) for rows in cursor.results())
        return cls(images, jobs, renditions)

    def open_jobs(self, asset_id: uuid.UUID) -> Sequence[Row]:
        """The image's queued job, or the one in hand: at most one."""
        return [job for job in self.jobs.values() if job["asset_id"] == asset_id and is_open(job)]

    def visible(self, asset_id: uuid.UUID) -> dict[tuple[str, str], Row]:
        """The image's current renditions by format and size."""
        return {
            (each["format"], each["size_name"]): each
            for each in self.renditions.values()
            if each["asset_id"] == asset_id and each["state"] == "current"
        }


def _by_id(rows: Iterable[Row]) -> dict[uuid.UUID, Row]:
    return {row["id"]: row for row in rows}


@dataclass(slots=True)
class Step:
    """What one call of the code under test did, by its own account. Every step is one transaction."""

    claimed: list[DueJob] = field(default_factory=list)
    run_id: str | None = None  # that settled
    settled: dict[uuid.UUID, Outcome] = field(default_factory=dict)  # by job
    tried: dict[uuid.UUID, str] = field(default_factory=dict)  # by settled job: the best URL when it was claimed
    changed: set[str] = field(default_factory=set)  # source ids of images with another picture or a better rank
    reopens: bool = False  # an operator opened jobs


def is_open(job: Row) -> bool:
    """Whether there is work left in a job."""
    return job["status"] in ("queued", "processing")


def busy_times(job: Row) -> Times:
    """When runs had the job in hand, as it says itself."""
    return [(each.lower, each.upper) for each in job["busy"]]


def busy_after(before: Row, settled_at: datetime | None) -> Times:
    """The busy times of a job that was in hand, once that attempt is over.

    It was over when its outcome was settled, or when its run was last heard of, if that was longer ago than a lease.
    """
    begin, lease_until = before["started_at"], before["lease_until"]
    in_time = settled_at is not None and settled_at <= lease_until
    end = max(begin, settled_at if in_time else lease_until - LEASE)
    times = busy_times(before)
    if end > begin and times and times[-1][1] == begin:  # Postgres joins what touches
        begin, _ = times.pop()
    return [*times, (begin, end)] if end > begin else times
