"""Demand: how much is due in each shard, how urgent it is, and what comes due later by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY
from cdn_pipeline.queue.due import IS_DUE, IS_SELECTED, JOIN_SHUT_HOSTS, Selection
from cdn_pipeline.queue.states import JobStatus


@dataclass(frozen=True, slots=True)
class Demand:
    """The queued jobs of a shard that are not on hold. Those of a backfill's priority or a later one are bulk."""

    due: int = 0  # without bulk
    best_priority: int | None = None  # of `due`
    earliest_deadline: datetime | None = None  # of `due`
    bulk_due: int = 0
    waiting: int = 0  # for a later attempt, or for their host
    next_attempt_at: datetime | None = None  # of those that wait


def demand_by_shard(connection: sa.Connection, selection: Selection) -> Mapping[str, Demand]:
    """The demand of every shard that has queued jobs for such a run.

    Retries count as waiting until the next of the five-minute marks, unless their deadline is near; a run that is there
    anyhow takes them before. Jobs behind a breaker count as waiting until their host may be asked again.
    """
    rows = connection.execute(_DEMAND, selection.parameters).mappings()
    return {row["shard"]: Demand(**{name: row[name] for name in Demand.__slots__}) for row in rows}


# Retries of an outage come due spread over hours: without marks, a thousand of them would keep runs going back to back.
_WANTED_AT = """CASE WHEN retry_count = 0 OR deadline < clock_timestamp() + interval '10 minutes' THEN next_attempt_at
    ELSE date_bin('5 minutes', next_attempt_at + interval '5 minutes' - interval '1 microsecond', 'epoch') END"""

# Only the inner query's condition has its index; there the clock is read once a row, and not once a count.
_DEMAND = sa.text(f"""
    SELECT shard,
           count(*) FILTER (WHERE is_due AND NOT is_bulk) AS due,
           min(priority) FILTER (WHERE is_due AND NOT is_bulk) AS best_priority,
           min(deadline) FILTER (WHERE is_due AND NOT is_bulk) AS earliest_deadline,
           count(*) FILTER (WHERE is_due AND is_bulk) AS bulk_due,
           count(*) FILTER (WHERE NOT is_due) AS waiting,
           min(wanted_at) FILTER (WHERE NOT is_due) AS next_attempt_at
    FROM (
        SELECT shard, priority, deadline, wanted_at, priority >= {BACKFILL_PRIORITY} AS is_bulk,
               {IS_DUE} AND wanted_at <= clock_timestamp() AS is_due
        FROM cdn_image_jobs {JOIN_SHUT_HOSTS}
        CROSS JOIN LATERAL (SELECT greatest({_WANTED_AT}, shut.retry_at) AS wanted_at) AS wanted
        WHERE status = '{JobStatus.QUEUED}' AND held_at IS NULL AND {IS_SELECTED}
    ) AS queued
    GROUP BY shard
""")
