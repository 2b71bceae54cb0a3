"""Who works, and whether anybody should: runs and leases that are alive, jobs that are due."""

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.due import IS_DUE, JOIN_SHUT_HOSTS
from cdn_pipeline.queue.leases import LEASE, dead_runs
from cdn_pipeline.queue.states import JobStatus


@dataclass(frozen=True, slots=True)
class Workers:
    """A lease is alive while it has not expired and its run holds its lock.

    `due` are the jobs that somebody could take now: not on hold, and not behind a breaker. `idle_for` is how long work
    has been due while no lease was alive; None while one is, or while nothing is due.
    """

    runs: int  # that live, with work in hand or not
    leases: int
    due: int
    idle_for: timedelta | None


def workers(connection: sa.Connection, collection: Collection) -> Workers:
    """Counts them; 0.07 s with 150,000 due jobs."""
    values = {"collection": collection.name, "dead": dead_runs(connection), "lease": LEASE}
    return Workers(**connection.execute(_WORKERS, values).mappings().one())


# Work was last in hand when a job ended, when an attempt of a job that is due again ended, or when a lease that died
# was last renewed.
_WORKERS = sa.text(f"""
    WITH due AS (
        SELECT count(*) AS jobs, min(greatest(created_at, next_attempt_at)) AS since, max(upper(busy)) AS last_in_hand
        FROM cdn_image_jobs {JOIN_SHUT_HOSTS}
        WHERE collection = :collection AND {IS_DUE} AND shut_host IS NULL
    ), leases AS (
        SELECT count(*) FILTER (WHERE lease_until > clock_timestamp() AND run_id <> ALL(:dead)) AS alive,
               max(lease_until - CAST(:lease AS interval)) AS last_renewed
        FROM cdn_image_jobs WHERE collection = :collection AND status = '{JobStatus.PROCESSING}'
    ), ended AS (
        SELECT max(completed_at) AS last FROM cdn_image_jobs
        WHERE collection = :collection AND completed_at IS NOT NULL
    )
    SELECT (SELECT count(*) FROM cdn_runs WHERE ended_at IS NULL AND run_id <> ALL(:dead)) AS runs,
           leases.alive AS leases, due.jobs AS due,
           CASE WHEN leases.alive = 0 AND due.jobs > 0 THEN
               greatest(clock_timestamp() - greatest(since, last_in_hand, last_renewed, ended.last), interval '0')
           END AS idle_for
    FROM due, leases, ended
""")
