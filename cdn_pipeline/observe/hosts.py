"""Hosts that are left alone: their breaker is open, and images wait behind it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.times import clock, span
from cdn_pipeline.queue.hosts import HAS_LAPSED
from cdn_pipeline.queue.states import JobStatus, Stage


@dataclass(frozen=True, slots=True)
class ShutHost:
    """A host whose breaker is open, or half-open with images still behind it."""

    host: str
    failure: FailureKind | None  # the last one
    failures: int  # in a row
    opened_at: datetime
    retry_at: datetime  # when it may be asked again, by one image; if that has passed, by the next run
    open_for: timedelta
    images: int  # that wait for it

    @property
    def words(self) -> str:
        """Since when, why, until when, and how much waits, in a sentence."""
        return (
            f"{self.host} is left alone since {clock(self.opened_at)} ({span(self.open_for)}) after {self.failure}, "
            f"until {clock(self.retry_at)}; images behind it: {self.images}"
        )


def shut_hosts(connection: sa.Connection, collection: Collection) -> tuple[ShutHost, ...]:
    """The hosts that are left alone, the longest first. A half-open one that no image waits for is no matter."""
    return tuple(
        ShutHost(**{**row, "failure": FailureKind.of(row["failure"]) if row["failure"] else None})
        for row in connection.execute(_SHUT_HOSTS, {"collection": collection.name}).mappings()
    )


_SHUT_HOSTS = sa.text(f"""
    SELECT h.host, h.failure_kind AS failure, h.failures, h.opened_at, h.retry_at,
           clock_timestamp() - h.opened_at AS open_for, waiting.images
    FROM cdn_hosts h CROSS JOIN LATERAL (
        SELECT count(*) AS images FROM cdn_image_jobs j
        WHERE j.collection = :collection AND j.status = '{JobStatus.QUEUED}' AND j.held_at IS NULL
          AND j.stage = '{Stage.DOWNLOAD}' AND j.host = h.host
    ) AS waiting
    WHERE h.opened_at IS NOT NULL AND (h.retry_at > clock_timestamp() OR waiting.images > 0) AND NOT {HAS_LAPSED}
    ORDER BY h.opened_at
""")
