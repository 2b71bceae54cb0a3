"""Whether deadlines can be kept: how many images will have expired before we reach them, at the present rate."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.thresholds import HOLD_ALARM, MINIMUM_SAMPLE
from cdn_pipeline.observe.times import clock
from cdn_pipeline.queue.states import JobStatus, Stage

RATE_WINDOW = timedelta(hours=24)
RATE_SAMPLE = 10_000  # the images downloaded last: the rate of now, at a cost that is bounded


@dataclass(frozen=True, slots=True)
class Feasibility:
    """What becomes of the images that wait for their download.

    `rate` is in images per second of time with work in hand, not known as long as too few were downloaded lately.
    `at_risk` are those that expire before we reach them; without a rate, those that would be too late even if it took
    no time. We never reach one that is on hold: it is at risk once it is within `HOLD_ALARM` of its expiry.
    """

    rate: float | None
    waiting: int  # on hold or not
    at_risk: int
    at_risk_on_hold: int  # of those at risk
    first_at_risk: datetime | None  # when the first of them expires
    words: str


def feasibility(connection: sa.Connection, collection: Collection) -> Feasibility:
    """Lets the queue run ahead in its order (priority, then deadline) at the rate of the last downloads.

    Image number n is reached n / rate seconds from now, or when its next attempt is due if that is later.
    """
    values = {
        "collection": collection.name,
        "window": RATE_WINDOW,
        "sample": RATE_SAMPLE,
        "minimum": MINIMUM_SAMPLE,
        "hold_alarm": HOLD_ALARM,
    }
    row = connection.execute(_FEASIBILITY, values).one()
    return Feasibility(**row._mapping, words=_words(row))


def _words(row: sa.Row[Any]) -> str:
    if not row.waiting:
        return "no image waits for its download"
    pace = "no rate measured yet" if row.rate is None else f"at {row.rate:.1f} images/s"
    if not row.at_risk:
        return f"of {row.waiting} waiting images none expires before we reach it ({pace})"
    on_hold = f"{row.at_risk_on_hold} of them on hold, " if row.at_risk_on_hold else ""
    return (
        f"of {row.waiting} waiting images {row.at_risk} will have expired when we reach them ({pace}), {on_hold}"
        f"the first at {clock(row.first_at_risk)}"
    )


# The rate counts downloads only: images encoded again and images found expired take another time or none. Their time
# is the union of when they were in hand, from the start of the sample on, since many are in hand at once and a retried
# one was first in hand long before. With 100,000 waiting and 10,000 in the sample: 0.1 s.
_FEASIBILITY = sa.text(f"""
    WITH downloaded AS (
        SELECT busy, started_at FROM cdn_image_jobs
        WHERE collection = :collection AND completed_at > now() - CAST(:window AS interval)
          AND download_ms IS NOT NULL
        ORDER BY completed_at DESC LIMIT :sample
    ), sample AS (
        SELECT count(*) AS images, tstzmultirange(tstzrange(min(started_at), NULL)) AS span FROM downloaded
    ), in_hand AS (
        SELECT extract(epoch FROM sum(upper(part) - lower(part))) AS seconds
        FROM unnest((SELECT range_agg(busy * span) FROM downloaded CROSS JOIN sample)) AS part
    ), pace AS (
        SELECT CAST(images / nullif(seconds, 0) AS float8) AS rate
        FROM sample CROSS JOIN in_hand WHERE images >= :minimum
    ), waiting AS (
        SELECT deadline, held_at IS NOT NULL AS on_hold,
               greatest(next_attempt_at, now() + make_interval(secs => coalesce(
                   row_number() OVER (ORDER BY held_at IS NOT NULL, priority, deadline) / (SELECT rate FROM pace), 0)
               )) AS reached_at
        FROM cdn_image_jobs
        WHERE collection = :collection AND status = '{JobStatus.QUEUED}' AND stage = '{Stage.DOWNLOAD}'
    ), at_risk AS (
        SELECT deadline, on_hold FROM waiting
        WHERE deadline < CASE WHEN on_hold THEN now() + CAST(:hold_alarm AS interval) ELSE reached_at END
    )
    SELECT (SELECT rate FROM pace) AS rate, (SELECT count(*) FROM waiting) AS waiting, count(*) AS at_risk,
           count(*) FILTER (WHERE on_hold) AS at_risk_on_hold, min(deadline) AS first_at_risk
    FROM at_risk
""")
