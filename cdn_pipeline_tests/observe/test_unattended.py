"""Whether a run comes by itself is told from the sensor's own heartbeat, and what to do is a command that fits."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.thresholds import NO_WORKERS_ERROR, SENSOR_SILENT
from cdn_pipeline.observe.unattended import DUE_SENSOR, how_to_start, left_alone, run_command, sensor_silence
from cdn_pipeline.orchestration.sensors import due_images_sensor
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.refreshes import Limits, open_refresh
from cdn_pipeline_tests.queue.catalogs import RUN, publish, reference, register, see, session


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def seen(connection: sa.Connection, ago: timedelta) -> None:
    beat(connection, DUE_SENSOR)
    connection.execute(sa.text("UPDATE cdn_heartbeats SET beat_at = clock_timestamp() - :ago"), {"ago": ago})


def test_it_is_the_sensor_that_asks_for_runs() -> None:
    assert due_images_sensor.name == DUE_SENSOR


def test_a_sensor_that_looked_lately_starts_runs_by_itself(connection: sa.Connection) -> None:
    seen(connection, SENSOR_SILENT - timedelta(seconds=30))
    assert sensor_silence(connection) is None
    assert how_to_start(connection, ["00"]) is None


def test_a_sensor_that_is_off_is_silent_although_the_daemon_lives(connection: sa.Connection) -> None:
    seen(connection, timedelta(hours=3))
    beat(connection, "alerts_sensor")
    assert "due_images_sensor was last seen 3 h ago" in (sensor_silence(connection) or "")


def test_what_to_do_names_the_switch_and_the_command_of_a_run(connection: sa.Connection) -> None:
    told = how_to_start(connection, ["05", "03"]) or ""
    assert "due_images_sensor was never seen" in told
    assert "switch the sensor on" in told
    assert f"`{run_command(['03', '04', '05'])}`" in told
    assert how_to_start(connection, []) is None


def test_work_is_left_alone_while_it_is_due_and_neither_run_nor_sensor_lives(connection: sa.Connection) -> None:
    assert left_alone(connection, INSTAGRAM) is None
    see(connection, reference(shard="07"))
    assert f"`{run_command(['07'])}`" in (left_alone(connection, INSTAGRAM) or "")
    publish(connection)
    assert left_alone(connection, INSTAGRAM) is None


def test_the_hint_comes_long_before_it_is_an_illness() -> None:
    assert SENSOR_SILENT < NO_WORKERS_ERROR / 2


def test_work_with_a_living_run_or_sensor_is_not_left_alone(connection: sa.Connection) -> None:
    see(connection, reference())
    register(connection, RUN)
    assert left_alone(connection, INSTAGRAM) is None
    connection.execute(sa.text("DELETE FROM cdn_runs"))
    assert left_alone(connection, INSTAGRAM)
    beat(connection, DUE_SENSOR)
    assert left_alone(connection, INSTAGRAM) is None


def test_a_refresh_that_nobody_comes_to_is_work_as_well(connection: sa.Connection) -> None:
    see(connection, reference(shard="02"))
    publish(connection)
    open_refresh(connection, INSTAGRAM, "owner", Limits())
    assert f"`{run_command(['02'])}`" in (left_alone(connection, INSTAGRAM) or "")
