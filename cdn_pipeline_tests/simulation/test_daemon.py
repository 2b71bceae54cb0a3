"""Dagster's daemon, played: which runs it launches, and what it keeps of them."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from benchmarks.simulation.daemon import Daemon

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dg.asset
def thing(context: dg.AssetExecutionContext) -> None:
    if context.run.tags.get("breaks"):
        raise ValueError("it broke")


@dg.asset_check(asset=thing)
def is_good(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    passed = "bad" not in context.run.tags
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description="not good")


job = dg.define_asset_job("job", selection=dg.AssetSelection.assets(thing))
hourly = dg.ScheduleDefinition(name="hourly", job=job, cron_schedule="5 * * * *")


def daemon_with(instance: dg.DagsterInstance, *requests: dg.RunRequest) -> Daemon:
    """One whose sensor always asks for the same."""

    @dg.sensor(job=job)
    def always(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
        yield from requests

    definitions = dg.Definitions(
        assets=[thing], asset_checks=[is_good], jobs=[job], schedules=[hourly], sensors=[always]
    )
    return Daemon(definitions, instance, since=START)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def test_a_schedule_is_kept_once_for_each_of_its_times(instance: dg.DagsterInstance) -> None:
    daemon = daemon_with(instance)
    for now, runs in ((START, 0), (START + HOUR / 12, 1), (START + HOUR, 1), (START + HOUR * 13 / 12, 2)):
        daemon.keep_schedules(now)
        assert daemon.record.runs["hourly"] == runs


def test_of_the_times_that_were_missed_only_the_last_is_made_up_for(instance: dg.DagsterInstance) -> None:
    daemon = daemon_with(instance)
    daemon.keep_schedules(START + 6 * HOUR)
    assert daemon.record.runs == {"hourly": 1}
    [run] = instance.get_runs()
    assert run.tags["dagster/schedule_name"] == "hourly"


def test_a_run_key_is_honoured_once_and_a_request_without_one_every_time(instance: dg.DagsterInstance) -> None:
    daemon = daemon_with(instance, dg.RunRequest(run_key="a"), dg.RunRequest())
    for _ in range(2):
        daemon.ask_sensors()
    assert (daemon.record.looks, daemon.record.runs["always"]) == (2, 3)
    assert [run.tags.get("dagster/run_key") for run in instance.get_runs()] == [None, None, "a"]


def test_checks_that_do_not_pass_and_runs_that_break_are_kept_with_their_words(instance: dg.DagsterInstance) -> None:
    daemon = daemon_with(instance, dg.RunRequest(tags={"bad": "1"}), dg.RunRequest(tags={"breaks": "1"}))
    daemon.ask_sensors()
    [check] = daemon.record.failed_checks
    assert (check.name, check.severity, check.words) == ("is_good", "WARN", "not good")
    assert daemon.record.failed_runs == {"always": 1}
    [broken] = daemon.record.broken
    assert broken.endswith("always: ValueError: it broke")
