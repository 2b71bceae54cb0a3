"""What Dagster's runs cover, and what they failed at too often."""

from collections.abc import Iterator, Set
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from cdn_pipeline.orchestration.coverage import look_at_runs
from cdn_pipeline.orchestration.run_requests import Covered, Need
from cdn_pipeline_tests.orchestration.workplace import begin_run, begin_run_ago, report, shard_tags

SENSOR = "due_images_sensor"
SHARDS = shard_tags("05", "06")
NOW, LONG_AGO = timedelta(), timedelta(minutes=30)
SOON = {Need.DUE, Need.CHANGED}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def fail(instance: dg.DagsterInstance, lane: str, minutes_ago: float, sensor: str = SENSOR) -> None:
    run = begin_run(instance, **SHARDS, lane=lane, **{"dagster/sensor_name": sensor})
    report(instance, run, dg.DagsterEventType.PIPELINE_FAILURE, timedelta(minutes=minutes_ago))


@pytest.mark.parametrize(
    ("tags", "needs"),
    [
        ({"lane": "urgent"}, {Need.URGENT, Need.REFRESH, *SOON}),
        ({"lane": "regular"}, SOON),
        ({"lane": "bulk"}, {Need.BULK}),
        ({"dagster/backfill": "b"}, {Need.BULK}),
        ({"dagster/backfill": "b", "lane": "regular"}, {Need.BULK}),
        ({}, {Need.BULK, *SOON}),
        ({"lane": "of somebody else"}, {Need.BULK, *SOON}),
    ],
)
def test_a_run_covers_what_it_takes_in_time_and_once_it_has_read_its_sources_no_change(
    instance: dg.DagsterInstance, tags: dict[str, str], needs: Set[Need]
) -> None:
    run = begin_run(instance, **SHARDS, **tags)
    for ago, covered in (
        (None, needs),
        (timedelta(seconds=50), needs),
        (timedelta(seconds=70), needs - {Need.CHANGED, Need.REFRESH}),
    ):
        if ago is not None:
            report(instance, run, dg.DagsterEventType.PIPELINE_START, ago)
        assert look_at_runs(instance, SENSOR) == Covered({"05": covered, "06": covered})


def test_what_several_runs_cover_adds_up(instance: dg.DagsterInstance) -> None:
    begin_run_ago(instance, LONG_AGO, lane="regular", **SHARDS)
    begin_run_ago(instance, NOW, lane="bulk", **shard_tags("06", "07"))
    assert look_at_runs(instance, SENSOR).needs == {
        "05": {Need.DUE},
        "06": {Need.DUE, Need.BULK},
        "07": {Need.BULK},
    }


def test_partitions_that_are_no_shards_and_runs_that_have_ended_cover_nothing(instance: dg.DagsterInstance) -> None:
    begin_run(instance, "hourly_stats", **{"dagster/partition": "2026-03-01-00:00"})
    instance.report_run_canceled(begin_run(instance, **SHARDS))
    assert look_at_runs(instance, SENSOR) == Covered()


def test_three_failures_within_a_quarter_of_an_hour_hold_a_shard_back(instance: dg.DagsterInstance) -> None:
    for minutes_ago in (1, 14, 16):
        fail(instance, "regular", minutes_ago)
    fail(instance, "bulk", 2)
    fail(instance, "regular", 2, sensor="another")
    assert look_at_runs(instance, SENSOR) == Covered()
    fail(instance, "regular", 5)
    covered = look_at_runs(instance, SENSOR)
    assert covered.needs == {"05": SOON, "06": SOON}
    in_a_minute = pytest.approx(datetime.now(UTC) + timedelta(minutes=1), abs=timedelta(seconds=30))
    assert covered.held_back == {"05": in_a_minute, "06": in_a_minute}


def test_failures_of_runs_that_the_api_started_count_as_the_sensors(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        run = begin_run(instance, **SHARDS, lane="urgent")
        report(instance, run, dg.DagsterEventType.PIPELINE_FAILURE, timedelta(minutes=1))
    assert look_at_runs(instance, SENSOR).held_back.keys() == {"05", "06"}


@pytest.mark.parametrize(
    ("lane", "needs"),
    [
        ("urgent", {Need.URGENT, Need.REFRESH, *SOON}),
        ("regular", SOON),
        ("bulk", {Need.BULK}),
        ("", {Need.BULK, *SOON}),
    ],
)
def test_failures_hold_back_only_what_runs_of_their_lane_take(
    instance: dg.DagsterInstance, lane: str, needs: Set[Need]
) -> None:
    for _ in range(3):
        fail(instance, lane, 1)
    assert look_at_runs(instance, SENSOR).needs == {"05": needs, "06": needs}
