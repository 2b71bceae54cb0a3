"""Heartbeats: that Dagster's daemon is alive, as far as its sensors tick."""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa


def beat(connection: sa.Connection, name: str) -> None:
    """Notes that the sensor of this name ticks now, by the catalog's clock."""
    connection.execute(_BEAT, {"name": name})


def last_beat(connection: sa.Connection) -> datetime | None:
    """When any sensor last ticked; None if none ever did."""
    beat_at: datetime | None = connection.execute(_LAST_BEAT).scalar_one()
    return beat_at


def beats(connection: sa.Connection) -> Mapping[str, datetime]:
    """When each sensor that ever did last ticked."""
    return {row.name: row.beat_at for row in connection.execute(_BEATS)}


_BEAT = sa.text("""
    INSERT INTO cdn_heartbeats (name, beat_at) VALUES (:name, clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET beat_at = excluded.beat_at
""")

_LAST_BEAT = sa.text("SELECT max(beat_at) FROM cdn_heartbeats")

_BEATS = sa.text("SELECT name, beat_at FROM cdn_heartbeats")
