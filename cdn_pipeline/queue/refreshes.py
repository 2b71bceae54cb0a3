"""Refreshes: users' requests to have an owner fetched again, from the request to its answer.

A refresh is open until a run has read the owner's source rows and has asked the provider. A living run holds those that
it has begun with; what a dead one held is anybody's again, so a killed run loses none.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import REENCODE_PRIORITY, URGENT_PRIORITY, Collection
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.leases import LIVING_RUNS
from cdn_pipeline.queue.states import JobStatus
from cdn_pipeline.queue.tombstones import erased_owners

PAUSE = timedelta(minutes=10)  # after a refresh of the same owner: fresh URLs live for days
EXPIRES_AFTER = timedelta(hours=1)  # the sensor asks for a run within a minute: nobody runs
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)

_TURNSTILE = 0x72656672  # an advisory lock of its own: requests are counted and let in one at a time


class RefreshAnswer(StrEnum):
    """`cdn_refreshes.answer`: what a refresh has come to."""

    ANSWERED = "answered"  # the provider has delivered the profile
    NO_PROVIDER = "no_provider"  # none is configured: only the source rows were read again
    NO_USER_NAME = "no_user_name"  # the application database has none to ask the provider for
    PRIVATE = "private"
    GONE = "gone"
    BUDGET_SPENT = "budget_spent"
    UNAVAILABLE = "unavailable"  # the provider did not answer, or with something else
    EXPIRED = "expired"  # no run came to it in time


@dataclass(frozen=True, slots=True)
class Refresh:
    """One request. `run_id` is the run that does it or will; `launched` if the API has started that run."""

    id: uuid.UUID
    owner_id: str
    shard: str
    requested_at: datetime
    run_id: str | None
    launched: bool
    answer: RefreshAnswer | None  # None: it is open
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How many refreshes there may be, of all owners together: 100 are 20 s of the provider's lowest plan."""

    open_at_once: int = 100
    per_minute: int = 20
    per_day: int = 2_000  # UTC; each may take a run of some seconds


class UnknownOwnerError(Exception):
    """The catalog has no image of this owner: it is new, removed or erased, or there never was one."""


class TooManyRefreshesError(Exception):
    """The refresh is not wanted now; `retry_after` says from when on it may be."""

    def __init__(self, words: str, retry_after: timedelta) -> None:
        super().__init__(words)
        self.retry_after = retry_after


IS_WAITING = "finished_at IS NULL"

# One that was started and has not come up yet holds nothing: whoever comes first begins.
_IS_HELD = f"coalesce(run_id IN ({LIVING_RUNS}), false)"

# CASE: locks are only looked at for what is old.
IS_TOO_OLD = f"""({IS_WAITING} AND CASE
    WHEN requested_at < clock_timestamp() - CAST(:expires_after AS interval) THEN NOT {_IS_HELD} ELSE false END)"""

_COLUMNS = "id, owner_id, shard, requested_at, run_id, launched, answer, finished_at"


def _refresh(row: sa.RowMapping) -> Refresh:
    return Refresh(**{**row, "answer": row["answer"] and RefreshAnswer(row["answer"])})


# -- asking for one --


def open_refresh(
    connection: sa.Connection, collection: Collection, owner_id: str, limits: Limits
) -> tuple[Refresh, bool]:
    """Opens a refresh, unless one is open; returns it, and whether it is new.

    Who is refused waits for nobody: that is looked at before the turnstile, and once more behind it.

    Raises:
        UnknownOwnerError: there is nothing to refresh.
        TooManyRefreshesError: the owner's last one was answered just now, or there are too many of all owners.
    """
    values = {"collection": collection.name, "owner_id": owner_id}
    shard = connection.scalar(_SHARD, values)
    if shard is None:
        raise UnknownOwnerError(owner_id)
    if is_open := _look(connection, collection, owner_id, limits):
        return is_open, False
    if erased_owners(connection, collection, [owner_id]):
        raise UnknownOwnerError(owner_id)
    connection.execute(_PASS_TURNSTILE, {"turnstile": _TURNSTILE})
    expire_refreshes(connection)
    if is_open := _look(connection, collection, owner_id, limits):
        return is_open, False
    return _refresh(connection.execute(_OPEN, {**values, "shard": shard}).mappings().one()), True


def _look(connection: sa.Connection, collection: Collection, owner_id: str, limits: Limits) -> Refresh | None:
    """The owner's open refresh. Raises `TooManyRefreshesError` if there is none, and none is wanted."""
    last = latest_refresh(connection, collection, owner_id)
    if last is not None and last.answer is None:
        return last
    _require_pause(connection, collection, owner_id)
    _require_room(connection, collection, limits)
    return None


def _require_pause(connection: sa.Connection, collection: Collection, owner_id: str) -> None:
    values = {
        "collection": collection.name,
        "owner_id": owner_id,
        "pause": PAUSE,
        "expired": RefreshAnswer.EXPIRED,
    }
    left: timedelta | None = connection.scalar(_PAUSE_LEFT, values)
    if left is not None and left > timedelta(0):
        raise TooManyRefreshesError("The profile was refreshed a few minutes ago.", left)


def _require_room(connection: sa.Connection, collection: Collection, limits: Limits) -> None:
    now = catalog_time(connection).astimezone(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    values = {
        "collection": collection.name,
        "expires_after": EXPIRES_AFTER,
        "last_minute": now - _MINUTE,
        "today": today,
        "per_day": limits.per_day,
    }
    count = connection.execute(_COUNT, values).one()
    if count.open >= limits.open_at_once:
        raise TooManyRefreshesError(f"{count.open} profiles wait for their refresh already.", _MINUTE)
    if count.last_minute >= limits.per_minute:
        raise TooManyRefreshesError(f"{count.last_minute} refreshes were asked for in the last minute.", _MINUTE)
    if count.today >= limits.per_day:
        raise TooManyRefreshesError(f"Today's {limits.per_day} refreshes are used up.", today + _DAY - now)


_PASS_TURNSTILE = sa.text("SELECT pg_advisory_xact_lock(:turnstile)")

_SHARD = sa.text("""
    SELECT shard FROM cdn_image_assets
    WHERE collection = :collection AND owner_id = :owner_id AND removed_at IS NULL LIMIT 1
""")

_PAUSE_LEFT = sa.text("""
    SELECT max(finished_at) + CAST(:pause AS interval) - clock_timestamp() FROM cdn_refreshes
    WHERE collection = :collection AND owner_id = :owner_id AND answer <> :expired
""")

# Moments are bound: the planner does not know how recent one is that a query works out, and reads all of the table.
_COUNT = sa.text(f"""
    SELECT (SELECT count(*) FROM cdn_refreshes
            WHERE collection = :collection AND {IS_WAITING} AND NOT {IS_TOO_OLD}) AS open,
           (SELECT count(*) FROM cdn_refreshes
            WHERE collection = :collection AND requested_at > CAST(:last_minute AS timestamptz)) AS last_minute,
           (SELECT count(*) FROM (
                SELECT FROM cdn_refreshes
                WHERE collection = :collection AND requested_at >= CAST(:today AS timestamptz)
                LIMIT :per_day) AS counted) AS today
""")

# `now()` is when the transaction began, which may have waited its turn since.
_OPEN = sa.text(f"""
    INSERT INTO cdn_refreshes (collection, owner_id, shard, requested_at)
    VALUES (:collection, :owner_id, :shard, clock_timestamp())
    RETURNING {_COLUMNS}
""")


def wants_run(connection: sa.Connection, collection: Collection, refresh: Refresh) -> bool:
    """Whether a run is to be started for a new refresh; one that was asked for within the last minute takes it along.

    So however many profiles of a shard users look at, there is one run a minute for them.
    """
    values = {
        "collection": collection.name,
        "id": refresh.id,
        "shard": refresh.shard,
        "requested_at": refresh.requested_at,
        "minute": _MINUTE,
    }
    return not connection.scalar(_RIDES_ALONG, values)


# Who comes first starts it: whether it has started is only known when others have come.
_RIDES_ALONG = sa.text(f"""
    SELECT EXISTS (
        SELECT FROM cdn_refreshes
        WHERE collection = :collection AND shard = :shard AND {IS_WAITING} AND id <> :id
          AND requested_at <= CAST(:requested_at AS timestamptz)
          AND requested_at > CAST(:requested_at AS timestamptz) - CAST(:minute AS interval))
""")


def note_launch(connection: sa.Connection, refresh_id: uuid.UUID, run_id: str) -> Refresh | None:
    """Notes the run that was started for a refresh, unless another one has begun with it meanwhile.

    Returns the refresh as it stands; None if it is gone, because the owner was erased.
    """
    connection.execute(_NOTE_LAUNCH, {"id": refresh_id, "run_id": run_id})
    row = connection.execute(_STANDING, {"id": refresh_id}).mappings().one_or_none()
    return None if row is None else _refresh(row)


_NOTE_LAUNCH = sa.text("""
    UPDATE cdn_refreshes SET run_id = :run_id, launched = true
    WHERE id = :id AND coalesce(run_id = :run_id, true)
""")

_STANDING = sa.text(f"SELECT {_COLUMNS} FROM cdn_refreshes WHERE id = :id")


def latest_refresh(connection: sa.Connection, collection: Collection, owner_id: str) -> Refresh | None:
    """The owner's last refresh as it stands; one that nobody has come to in time is told as expired."""
    values = {
        "collection": collection.name,
        "owner_id": owner_id,
        "expires_after": EXPIRES_AFTER,
        "expired": RefreshAnswer.EXPIRED,
    }
    row = connection.execute(_LATEST, values).mappings().one_or_none()
    return None if row is None else _refresh(row)


_LATEST = sa.text(f"""
    SELECT id, owner_id, shard, requested_at, run_id, launched, finished_at,
           CASE WHEN {IS_TOO_OLD} THEN :expired ELSE answer END AS answer
    FROM cdn_refreshes WHERE collection = :collection AND owner_id = :owner_id
    ORDER BY requested_at DESC LIMIT 1
""")


# -- doing it --


def expire_refreshes(connection: sa.Connection) -> int:
    """Closes refreshes that no run came to in time, but for those in hand; returns how many."""
    return connection.execute(_EXPIRE, {"expires_after": EXPIRES_AFTER, "expired": RefreshAnswer.EXPIRED}).rowcount


_EXPIRE = sa.text(f"UPDATE cdn_refreshes SET answer = :expired, finished_at = clock_timestamp() WHERE {IS_TOO_OLD}")


def shards_to_refresh(connection: sa.Connection, collection: Collection) -> frozenset[str]:
    """The shards with open refreshes that no living run holds."""
    return frozenset(connection.scalars(_SHARDS, {"collection": collection.name}))


_SHARDS = sa.text(f"""
    SELECT DISTINCT shard FROM cdn_refreshes WHERE collection = :collection AND {IS_WAITING} AND NOT {_IS_HELD}
""")


def take_refreshes(
    connection: sa.Connection, collection: Collection, shards: Sequence[str], run_id: str
) -> list[Refresh]:
    """The open refreshes of these shards, which the run holds from now on; the oldest first."""
    expire_refreshes(connection)
    values = {"collection": collection.name, "shards": list(shards), "run_id": run_id}
    taken = [_refresh(row) for row in connection.execute(_TAKE, values).mappings()]
    return sorted(taken, key=lambda refresh: refresh.requested_at)


_TAKE = sa.text(f"""
    WITH free AS (
        SELECT id FROM cdn_refreshes
        WHERE collection = :collection AND shard = ANY(:shards) AND {IS_WAITING}
          AND (run_id = :run_id OR NOT {_IS_HELD})
        ORDER BY requested_at FOR UPDATE SKIP LOCKED
    )
    UPDATE cdn_refreshes r SET run_id = :run_id, launched = launched AND run_id = :run_id
    FROM free WHERE r.id = free.id
    RETURNING {", ".join(f"r.{column}" for column in _COLUMNS.split(", "))}
""")


def finish_refresh(connection: sa.Connection, collection: Collection, refresh: Refresh, answer: RefreshAnswer) -> None:
    """Notes the answer; what is to be done for the owner's images is done next, whatever else is due."""
    values = {"collection": collection.name, "owner_id": refresh.owner_id, "priority": URGENT_PRIORITY}
    connection.execute(_HURRY_JOBS, values)
    connection.execute(_FINISH, {"id": refresh.id, "answer": answer})


# Also what waits for a later attempt: somebody looks at the gap now. Jobs in hand are left to their run but for the
# priority of a further attempt; what an operator holds stays held, and a re-encoding is nothing that a user waits for.
_HURRY_JOBS = sa.text(f"""
    WITH hurried AS (
        SELECT j.id FROM cdn_image_jobs j JOIN cdn_image_assets a ON a.id = j.asset_id
        WHERE a.collection = :collection AND a.owner_id = :owner_id AND {IS_OPEN} AND j.held_at IS NULL
          AND j.rollout IS NULL AND j.priority < {REENCODE_PRIORITY}
        ORDER BY a.id FOR UPDATE OF j
    )
    UPDATE cdn_image_jobs AS j
    SET priority = least(priority, :priority), updated_at = clock_timestamp(),
        next_attempt_at = CASE WHEN status = '{JobStatus.QUEUED}'
                               THEN least(next_attempt_at, clock_timestamp()) ELSE next_attempt_at END
    FROM hurried WHERE j.id = hurried.id
""")

_FINISH = sa.text(f"""
    UPDATE cdn_refreshes SET answer = :answer, finished_at = clock_timestamp() WHERE id = :id AND {IS_WAITING}
""")
