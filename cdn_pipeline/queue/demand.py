"""Demand: how much is due in each shard, how urgent it is, and what comes due later by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.queue.due import IS_DUE, IS_SELECTED, Selection
from cdn_pipeline.queue.states import JobStatus


@dataclass(frozen=True, slots=True)
class Demand:
    """The queued jobs of a shard that are not on hold. Priority and deadline are those of jobs that are due."""

    due: int = 0
    best_priority: int | None = None
    earliest_deadline: datetime | None = None
    waiting: int = 0  # for a later attempt
    next_attempt_at: datetime | None = None  # of those that wait


def demand_by_shard(connection: sa.Connection, selection: Selection) -> Mapping[str, Demand]:
    """The demand of every shard that has queued jobs for such a run."""
    rows = connection.execute(_DEMAND, selection.parameters).mappings()
    return {row["shard"]: Demand(**{name: row[name] for name in Demand.__slots__}) for row in rows}


# Only the inner query's condition has its index; there the clock is read once a row, and not once a count.
_DEMAND = sa.text(f"""
    SELECT shard,
           count(*) FILTER (WHERE is_due) AS due,
           min(priority) FILTER (WHERE is_due) AS best_priority,
           min(deadline) FILTER (WHERE is_due) AS earliest_deadline,
           count(*) FILTER (WHERE NOT is_due) AS waiting,
           min(next_attempt_at) FILTER (WHERE NOT is_due) AS next_attempt_at
    FROM (
        SELECT shard, priority, deadline, next_attempt_at, {IS_DUE} AS is_due FROM cdn_image_jobs
        WHERE status = '{JobStatus.QUEUED}' AND held_at IS NULL AND {IS_SELECTED}
    ) AS queued
    GROUP BY shard
""")
