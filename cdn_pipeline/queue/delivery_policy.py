"""Whose pictures frontends are given CDN URLs of: a switch for everybody, and a percentage of owners.

One row of the catalog that the API reads with every answer, so that a change counts at once on all machines. Without
the row the CDN is on for everybody. A switch that is thrown for a time comes back by itself, whatever became of whoever
threw it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.queue.audit import AuditEntry, latest_actions, note_action

_IS_OFF = "off_since IS NOT NULL AND coalesce(off_until > now(), true)"

CDN_PERCENTAGE = f"""coalesce(
    (SELECT CASE WHEN {_IS_OFF} THEN 0 ELSE percentage END FROM cdn_delivery_policy), 100)"""
"""SQL: the percentage of owners that are given CDN URLs just now."""


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """`percentage` of owners have CDN URLs while the CDN is on.

    It is off since `off_since` (None: on), until `off_until` (None: until somebody switches it on).
    """

    percentage: int = 100
    off_since: datetime | None = None
    off_until: datetime | None = None

    @property
    def is_on(self) -> bool:
        """Whether any owner may be given CDN URLs."""
        return self.off_since is None

    @property
    def is_everybody(self) -> bool:
        """Whether all owners are given CDN URLs."""
        return self.is_on and self.percentage == 100


def has_cdn_urls(owner_id: str, percentage: int) -> bool:
    """Whether this owner is among so many percent of all: always the same ones, and a higher percentage adds others."""
    digest = hashlib.blake2b(owner_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 100 < percentage


def read_policy(connection: sa.Connection) -> DeliveryPolicy:
    """The policy of now; a switch whose time is over is on."""
    row = connection.execute(_READ).mappings().one_or_none()
    return DeliveryPolicy(**row) if row else DeliveryPolicy()


_READ = sa.text(f"""
    SELECT percentage, CASE WHEN {_IS_OFF} THEN off_since END AS off_since,
           CASE WHEN {_IS_OFF} THEN off_until END AS off_until
    FROM cdn_delivery_policy
""")


def switch_off(connection: sa.Connection, actor: str, *, expires_in: timedelta | None) -> DeliveryPolicy:
    """Has nobody given CDN URLs, for this time or until `switch_on`; returns the policy."""
    connection.execute(_SWITCH_OFF, {"expires_in": expires_in})
    return _noted(connection, actor, "cdn-off")


def switch_off_if_on(connection: sa.Connection, actor: str, *, expires_in: timedelta) -> DeliveryPolicy | None:
    """As `switch_off`, but None if it is off already."""
    if connection.execute(_SWITCH_OFF_IF_ON, {"expires_in": expires_in}).rowcount == 0:
        return None
    return _noted(connection, actor, "cdn-off")


_SWITCH_OFF = sa.text("""
    INSERT INTO cdn_delivery_policy AS p (off_since, off_until)
    SELECT clock, clock + CAST(:expires_in AS interval) FROM clock_timestamp() AS clock
    ON CONFLICT (only_row) DO UPDATE SET off_since = excluded.off_since, off_until = excluded.off_until
""")

_SWITCH_OFF_IF_ON = sa.text(f"{_SWITCH_OFF.text} WHERE p.off_since IS NULL OR p.off_until <= clock_timestamp()")


def switch_on(connection: sa.Connection, actor: str) -> DeliveryPolicy:
    """Gives CDN URLs again, to as many owners as before; returns the policy."""
    connection.execute(_SWITCH_ON)
    return _noted(connection, actor, "cdn-on")


_SWITCH_ON = sa.text("UPDATE cdn_delivery_policy SET off_since = NULL, off_until = NULL")


def switch_back(connection: sa.Connection, actor: str, switched: DeliveryPolicy) -> bool:
    """Undoes what `switch_off` did, and returned as `switched`, unless somebody has switched since."""
    values = {"off_since": switched.off_since, "off_until": switched.off_until}
    if connection.execute(_SWITCH_BACK, values).rowcount == 0:
        return False
    _noted(connection, actor, "cdn-on")
    return True


_SWITCH_BACK = sa.text(f"{_SWITCH_ON.text} WHERE (off_since, off_until) = (:off_since, :off_until)")


def set_percentage(connection: sa.Connection, actor: str, percentage: int) -> DeliveryPolicy:
    """Gives CDN URLs to so many percent of owners; returns the policy. A switch that is off stays off."""
    connection.execute(_SET_PERCENTAGE, {"percentage": percentage})
    return _noted(connection, actor, "cdn-percentage")


_SET_PERCENTAGE = sa.text("""
    INSERT INTO cdn_delivery_policy (percentage) VALUES (:percentage)
    ON CONFLICT (only_row) DO UPDATE SET percentage = excluded.percentage
""")


def latest_changes(connection: sa.Connection, limit: int) -> Sequence[AuditEntry]:
    """Who has switched or set the percentage, the latest first; `details` have `percentage` and `off_until` since."""
    return latest_actions(connection, limit, actions=("cdn-on", "cdn-off", "cdn-percentage"))


def _noted(connection: sa.Connection, actor: str, action: str) -> DeliveryPolicy:
    policy = read_policy(connection)
    until = policy.off_until.isoformat() if policy.off_until else None
    note_action(connection, actor, action, details={"percentage": policy.percentage, "off_until": until}, affected=0)
    return policy
