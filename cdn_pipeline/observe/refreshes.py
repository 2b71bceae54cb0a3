"""How users' refreshes stand: how many wait for a run, and how many none came to."""

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.refreshes import EXPIRES_AFTER, IS_TOO_OLD, IS_WAITING, RefreshAnswer


@dataclass(frozen=True, slots=True)
class Refreshes:
    """`waiting` are open, the oldest for `age`; `expired` ones were closed within the last hour, or are to be."""

    waiting: int = 0
    age: timedelta | None = None
    expired: int = 0


def refreshes(connection: sa.Connection, collection: Collection) -> Refreshes:
    """Counts the refreshes of all owners: reads those that are open, and of the others the lately expired."""
    values = {"collection": collection.name, "expires_after": EXPIRES_AFTER, "lately": _LATELY}
    return Refreshes(**connection.execute(_REFRESHES, values).mappings().one())


_LATELY = timedelta(hours=1)

# For the index of expired ones: `expired` written out, and `now()`, which unlike `clock_timestamp()` stands still.
_REFRESHES = sa.text(f"""
    WITH unfinished AS (
        SELECT requested_at, {IS_TOO_OLD} AS is_too_old FROM cdn_refreshes
        WHERE collection = :collection AND {IS_WAITING}
    )
    SELECT count(*) FILTER (WHERE NOT is_too_old) AS waiting,
           clock_timestamp() - min(requested_at) FILTER (WHERE NOT is_too_old) AS age,
           count(*) FILTER (WHERE is_too_old) + (
               SELECT count(*) FROM cdn_refreshes
               WHERE collection = :collection AND answer = '{RefreshAnswer.EXPIRED}'
                 AND finished_at > now() - CAST(:lately AS interval)) AS expired
    FROM unfinished
""")
