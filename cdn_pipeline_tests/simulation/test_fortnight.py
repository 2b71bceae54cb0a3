"""The simulated fortnight's short form: a night with its nightly run, an outage and a run that is killed."""

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from benchmarks.simulation.fortnight import HOUR, Plan, play
from benchmarks.simulation.fortnight_result import Result
from cdn_pipeline.definitions import build_defs
from cdn_pipeline.orchestration import sensors
from cdn_pipeline_tests.postgres import open_folder

MIDNIGHT = (datetime.now(UTC) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
HOURS = 4

pytestmark = pytest.mark.timeout(600)  # half a minute on two cores that are free


@pytest.fixture(scope="module")
def result() -> Result:
    plan = Plan(
        MIDNIGHT,
        days=HOURS / 24,
        profiles_at_first=3,
        profiles_per_day=8,
        posts_per_profile=2,
        outage=HOUR,
        daemon_stopped=timedelta(),
    )
    with open_folder() as folder, time_machine.travel(plan.start) as traveller:
        result = play(plan, folder, build_definitions=build_defs, travel=traveller.move_to, say=lambda _: None)
        sensors._databases.close()
    return result


def test_nothing_is_lost_although_the_origin_is_down_and_a_run_is_killed(result: Result) -> None:
    assert (result.state.lost, result.red_hours) == (0, 0)
    assert result.record.broken == []
    assert result.taken_over > 0
    assert result.requests["server_error"] > 0


def test_all_that_can_be_published_is_published(result: Result) -> None:
    assert result.profiles == 5  # one of them arrives when the run is killed
    assert result.state.published > result.state.images * 0.9
    assert result.state.published + result.state.unpublished.total() == result.state.images
    assert set(result.state.unpublished) <= {"source_gone", "source_url_expired", "source_url_404"}
    assert len(result.waits) > result.profiles
    assert result.waits == sorted(result.waits)


def test_every_hours_statistics_are_stored_and_what_the_independent_count_says(result: Result) -> None:
    comparison = result.comparison
    assert (comparison.hours, comparison.missing, comparison.differences) == (HOURS, (), ())
    assert comparison.jobs > 0


def test_schedules_and_sensor_did_their_part_by_themselves(result: Result) -> None:
    runs = result.record.runs
    assert runs["hourly_stats_schedule"] == runs["standing_checks_schedule"] == HOURS + 1
    assert runs["nightly_freshness_schedule"] == 4
    assert runs["due_images_sensor"] >= 3


def test_the_table_says_it_all(result: Result) -> None:
    assert result.holds
    lines = list(result.table())
    assert "| **images lost on our watch** | **0** |" in lines
    assert "| hours compared, differing, without statistics | 4, 0, 0 |" in lines
