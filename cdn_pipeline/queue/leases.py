"""Leases: who works on a job, and whether that run still lives.

A run holds a session-level advisory lock for as long as it lives, so Postgres ends its leases the moment its process
dies (4 ms after `kill -9`, measured). `lease_until` is the second line, for a run that is stopped but not dead.
"""

import hashlib
import os
import socket
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage

LEASE = timedelta(seconds=60)
RENEW_EVERY = timedelta(seconds=15)

_HELD_LOCKS = """
    SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""

# Asked for the lock itself: others may have noted meanwhile that the run has ended.
_LIVES = sa.text(f"SELECT lock_key IN ({_HELD_LOCKS}) FROM cdn_runs WHERE run_id = :run_id AND ended_at IS NULL")

_DEAD_RUNS = f"SELECT run_id FROM cdn_runs WHERE ended_at IS NULL AND lock_key NOT IN ({_HELD_LOCKS})"
LIVING_RUNS = f"SELECT run_id FROM cdn_runs WHERE ended_at IS NULL AND lock_key IN ({_HELD_LOCKS})"

# A restart of the catalog takes every lock, and a run that lives notices when it next renews its leases.
_TIME_TO_NOTICE = timedelta(seconds=60)
_KILLED_RUNS = sa.text(f"""
    {_DEAD_RUNS} AND NOT (started_at < pg_postmaster_start_time()
                          AND now() < pg_postmaster_start_time() + CAST(:time_to_notice AS interval))
""")

_HELD_HERE = sa.text(f"SELECT :key IN ({_HELD_LOCKS} AND pid = pg_backend_pid())")


class RunAlreadyHeldError(Exception):
    """Another process holds this run's lock: the same run was started twice."""


class RunLostError(Exception):
    """The run's lock is gone: others take it for dead and take its jobs, unless it takes the lock again."""


_OUT_OF_REACH = (sa.exc.OperationalError, sa.exc.InternalError, sa.exc.InvalidRequestError)  # away, or a standby now


class RunLock:
    """The session lock of a run, on a connection of its own that no pool gets back: it cannot outlive the run."""

    def __init__(self, engine: sa.Engine, run_id: str, worker_id: str) -> None:
        """Registers the run and takes its lock; `close` gives it up.

        Raises:
            RunAlreadyHeldError: another living process holds the run.
            RunLostError: the way to the catalog does not keep a session.
        """
        self._engine = engine
        self._run_id = run_id
        self._worker_id = worker_id
        self._connection = self._taken()

    def regain(self, in_hand: Collection[uuid.UUID]) -> None:
        """Takes the lock again on a new connection, and lets go of jobs that the run does not know to be in hand.

        (The answer to its last claim may have been lost with the connection.) What others have taken meanwhile stays
        theirs: outcomes of those jobs are not written.

        Raises: as the constructor.
        """
        self._give_up()
        self._connection = self._taken()
        self._connection.execute(_RELEASE_UNKNOWN, {"run_id": self._run_id, "in_hand": list(in_hand)})

    def release_jobs(self) -> None:
        """Makes due again what an earlier process of the same run left in hand: it would look like this one's."""
        self._connection.execute(_RELEASE_UNKNOWN, {"run_id": self._run_id, "in_hand": []})

    def close(self) -> None:
        """Notes the end of the run and gives up the lock."""
        with suppress(*_OUT_OF_REACH):  # else the catalog has dropped it by itself
            end_runs(self._connection, [self._run_id])
        self._give_up()

    def _give_up(self) -> None:
        with suppress(*_OUT_OF_REACH):
            # At once: closing takes a moment.
            self._connection.scalar(sa.select(sa.func.pg_advisory_unlock(_lock_key(self._run_id))))
        self._connection.close()

    def _taken(self) -> sa.Connection:
        key = _lock_key(self._run_id)
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            connection.detach()
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                raise RunAlreadyHeldError(f"run {self._run_id} is already held by another process")
            connection.execute(_REGISTER, {"run_id": self._run_id, "key": key, "worker_id": self._worker_id})
            if not connection.scalar(_HELD_HERE, {"key": key}):
                raise RunLostError(
                    "the catalog's connection does not keep a session lock: connect directly or with session pooling "
                    "(a PgBouncer in transaction mode breaks it)"
                )
        except BaseException:
            connection.close()
            raise
        return connection


_REGISTER = sa.text("""
    INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES (:run_id, :key, :worker_id)
    ON CONFLICT (run_id) DO UPDATE SET worker_id = excluded.worker_id, started_at = now(), ended_at = NULL
""")


@dataclass(frozen=True, slots=True)
class Run:
    """A run that holds its lock; `worker_id` says where it runs (host:pid)."""

    run_id: str
    worker_id: str
    lock: RunLock | None = field(default=None, compare=False, repr=False)


@contextmanager
def hold_run(engine: sa.Engine, run_id: str) -> Iterator[Run]:
    """Registers the run and holds its advisory lock until the block ends.

    Raises:
        RunAlreadyHeldError: another living process holds the run.
        RunLostError: the way to the catalog does not keep a session.
    """
    worker_id = f"{socket.gethostname()}:{os.getpid()}"[:100]
    lock = RunLock(engine, run_id, worker_id)
    try:
        lock.release_jobs()
        yield Run(run_id, worker_id, lock)
    finally:
        lock.close()


def _lock_key(run_id: str) -> int:
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8], "big", signed=True)


def dead_runs(connection: sa.Connection) -> list[str]:
    """Ids of runs that were started and not ended, and whose process is gone."""
    return list(connection.scalars(sa.text(_DEAD_RUNS)))


def killed_runs(connection: sa.Connection) -> list[str]:
    """Ids of dead runs, but for those whose lock the restart of the catalog may have taken, a minute ago at most."""
    return list(connection.scalars(_KILLED_RUNS, {"time_to_notice": _TIME_TO_NOTICE}))


def registered_runs(connection: sa.Connection, run_ids: Collection[str]) -> set[str]:
    """Those of the runs that ever held their lock."""
    registered = sa.text("SELECT run_id FROM cdn_runs WHERE run_id = ANY(:run_ids)")
    return set(connection.scalars(registered, {"run_ids": list(run_ids)}))


def end_runs(connection: sa.Connection, run_ids: Sequence[str]) -> None:
    """Notes that these runs have ended."""
    connection.execute(
        sa.text("UPDATE cdn_runs SET ended_at = now() WHERE run_id = ANY(:run_ids)"), {"run_ids": list(run_ids)}
    )


def renew_leases(connection: sa.Connection, run: Run) -> int:
    """Extends the leases that the run still holds; returns how many.

    Raises:
        RunLostError: the connection that held the run's lock is gone, by a failover or an administrator.
    """
    if not connection.scalar(_LIVES, {"run_id": run.run_id}):
        raise RunLostError(f"the catalog dropped the connection that held the lock of run {run.run_id}")
    return connection.execute(_RENEW, {"lease": LEASE, "run_id": run.run_id}).rowcount


def release_dead_leases(connection: sa.Connection, shards: Sequence[str]) -> int:
    """Makes jobs due again whose run is dead or whose lease has expired; returns how many."""
    return connection.execute(_RELEASE_DEAD, {"shards": list(shards)}).rowcount


# What a job in hand adds to its `busy` times. A clock that was set back must not end a range before it begins.
# A run that was stopped for longer than its lease has done nothing since the last renewal, as far as anybody knows: an
# hour that was counted meanwhile must not change.
BUSY_UNTIL_LAST_RENEWAL = f"""tstzmultirange(tstzrange(
    started_at, greatest(started_at, lease_until - make_interval(secs => {LEASE.total_seconds()}))))"""
_HAS_SLEPT = "lease_until < clock_timestamp()"
BUSY_IN_HAND = f"""CASE WHEN {_HAS_SLEPT} THEN {BUSY_UNTIL_LAST_RENEWAL}
    ELSE tstzmultirange(tstzrange(started_at, greatest(started_at, clock_timestamp()))) END"""

_RENEW = sa.text(f"""
    WITH held AS (
        SELECT id, {_HAS_SLEPT} AS has_slept FROM cdn_image_jobs
        WHERE status = '{JobStatus.PROCESSING}' AND run_id = :run_id ORDER BY id FOR UPDATE
    )
    UPDATE cdn_image_jobs AS j
    SET busy = CASE WHEN has_slept THEN busy + {BUSY_UNTIL_LAST_RENEWAL} ELSE busy END,
        started_at = CASE WHEN has_slept THEN clock_timestamp() ELSE started_at END,
        lease_until = clock_timestamp() + :lease
    FROM held WHERE j.id = held.id
""")


def back_to_download(condition: str) -> str:
    """What a job becomes, as SQL assignments, if the condition sends it back to its source.

    Then it is of the collection's own recipe, whatever it was to roll out, and must not wait among the re-encodings
    until its URL is dead. (Discovery gives it the image's own priority, if it was discovery that found a new picture.)
    """
    return f"""rollout = CASE WHEN {condition} THEN NULL ELSE rollout END,
               priority = CASE WHEN {condition} THEN least(priority, {BACKFILL_PRIORITY}) ELSE priority END"""


def _release(which: str) -> sa.TextClause:
    # While a job is in hand it does not follow its image. It does now, and goes back to the start if what is stored is
    # not the picture that the image shows now, or not the best of it.
    return sa.text(f"""
        WITH held AS (
            SELECT j.id, j.asset_id, a.source_url, a.url_expires_at,
                   CASE WHEN a.original_identity = a.identity
                         AND (j.source_url = a.source_url OR a.original_rank >= a.rank)
                        THEN j.stage ELSE '{Stage.DOWNLOAD}' END AS stage
            FROM cdn_image_jobs j JOIN cdn_image_assets a ON a.id = j.asset_id
            WHERE j.status = '{JobStatus.PROCESSING}' AND {which}
            ORDER BY a.id FOR UPDATE OF j, a
        ), released AS (
            UPDATE cdn_image_jobs AS j
            SET status = '{JobStatus.QUEUED}', run_id = NULL, lease_until = NULL, stage = held.stage,
                {back_to_download(f"held.stage = '{Stage.DOWNLOAD}'")},
                busy = busy + {BUSY_UNTIL_LAST_RENEWAL},
                source_url = held.source_url, deadline = held.url_expires_at, updated_at = clock_timestamp()
            FROM held WHERE j.id = held.id
        )
        UPDATE cdn_image_assets AS a SET processing_status = '{ImageStatus.PENDING}', updated_at = clock_timestamp()
        FROM held WHERE a.id = held.asset_id
    """)


_RELEASE_UNKNOWN = _release("j.run_id = :run_id AND j.id <> ALL(CAST(:in_hand AS uuid[]))")

_RELEASE_DEAD = _release(f"""
    j.shard = ANY(:shards) AND (j.lease_until < clock_timestamp() OR j.run_id IN ({_DEAD_RUNS})
                                OR j.run_id NOT IN (SELECT run_id FROM cdn_runs WHERE ended_at IS NULL))""")
