"""The daemon is alive as far as any of its sensors ticks."""

from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.queue.heartbeats import beat, beats, last_beat


def test_before_the_first_tick_there_is_no_heartbeat(connection: sa.Connection) -> None:
    assert last_beat(connection) is None


def test_the_last_heartbeat_is_that_of_any_sensor(connection: sa.Connection) -> None:
    before = catalog_time(connection)
    beat(connection, "one")
    beat(connection, "other")
    connection.execute(sa.text("UPDATE cdn_heartbeats SET beat_at = beat_at - interval '1 hour' WHERE name = 'other'"))
    last = last_beat(connection)
    assert last is not None
    assert before <= last <= catalog_time(connection)
    connection.execute(sa.text("DELETE FROM cdn_heartbeats WHERE name = 'one'"))
    earlier = last_beat(connection)
    assert earlier is not None
    assert earlier < last - timedelta(minutes=59)
    beat(connection, "other")
    again = last_beat(connection)
    assert again is not None
    assert again >= last


def test_each_sensor_has_a_heartbeat_of_its_own(connection: sa.Connection) -> None:
    assert beats(connection) == {}
    beat(connection, "one")
    first = beats(connection)
    beat(connection, "other")
    both = beats(connection)
    assert set(both) == {"one", "other"}
    assert both["one"] == first["one"] < both["other"] == last_beat(connection)
