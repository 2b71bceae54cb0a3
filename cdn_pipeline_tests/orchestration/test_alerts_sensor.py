"""The alerts' sensor: it beats, starts nothing, and tells what only Dagster knows."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import AssetKey

from cdn_pipeline.definitions import defs
from cdn_pipeline.orchestration import alerts
from cdn_pipeline.orchestration.alerts import alerts_sensor
from cdn_pipeline.queue.heartbeats import last_beat
from cdn_pipeline_tests.observe.alerts.receiver import Webhook, running_webhook
from cdn_pipeline_tests.orchestration.workplace import Workplace, begin_run_ago, report

PUBLISHED = AssetKey("published_images")


@pytest.fixture
def place(memory_workplace: Workplace) -> Iterator[Workplace]:
    """The test's databases are gone after it, and so are the sensor's connections."""
    yield memory_workplace
    alerts._alerting.close()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with running_webhook() as webhook:
        monkeypatch.setenv("ALERT_URLS", webhook.url)
        yield webhook


def tick(place: Workplace) -> str:
    """What one evaluation says."""
    with dg.build_sensor_context(instance=place.instance, definitions=defs) as context:
        answer = alerts_sensor.evaluate_tick(context)
    assert answer.run_requests == []
    return answer.skip_message or ""


def end_run(place: Workplace, how: dg.DagsterEventType, ago: timedelta, job: str = "clean_up") -> None:
    run = begin_run_ago(place.instance, ago + timedelta(minutes=1), job)
    report(place.instance, run, how, ago)


def judge(place: Workplace, name: str, *, passed: bool, severity: dg.AssetCheckSeverity) -> None:
    words = f"{name} says so"
    evaluation = dg.AssetCheckEvaluation(
        asset_key=PUBLISHED, check_name=name, passed=passed, metadata={}, severity=severity, description=words
    )
    place.instance.report_runless_asset_event(evaluation)


ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


def test_the_sensor_is_off_until_somebody_switches_it_on() -> None:
    assert alerts_sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_a_tick_is_a_heartbeat_and_starts_nothing(place: Workplace, catalog: sa.Engine) -> None:
    assert tick(place) == "alerts that fire: 0"
    with catalog.connect() as connection:
        first = last_beat(connection)
    assert first is not None
    tick(place)
    with catalog.connect() as connection:
        second = last_beat(connection)
    assert second is not None
    assert second > first


def test_a_job_whose_last_run_failed_is_told_once(place: Workplace, webhook: Webhook) -> None:
    end_run(place, dg.DagsterEventType.PIPELINE_SUCCESS, timedelta(minutes=30))
    end_run(place, dg.DagsterEventType.PIPELINE_FAILURE, timedelta(minutes=10))
    assert tick(place) == "alerts that fire: 1"
    tick(place)
    assert webhook.titles == ["[critical] cdn_pipeline: A job's last run failed: clean_up"]


def test_a_failure_that_a_later_run_made_good_is_no_alert(place: Workplace, webhook: Webhook) -> None:
    end_run(place, dg.DagsterEventType.PIPELINE_FAILURE, timedelta(minutes=30))
    end_run(place, dg.DagsterEventType.PIPELINE_SUCCESS, timedelta(minutes=10))
    assert tick(place) == "alerts that fire: 0"
    assert webhook.arrived == []


def test_a_check_whose_last_evaluation_is_an_error_is_told(place: Workplace, webhook: Webhook) -> None:
    judge(place, "no_erasure_left_unfinished", passed=False, severity=ERROR)
    assert tick(place) == "alerts that fire: 1"
    [(title, body)] = webhook.arrived
    assert title == "[critical] cdn_pipeline: A check failed: published_images:no_erasure_left_unfinished"
    assert "no_erasure_left_unfinished says so." in body.lower()


@pytest.mark.parametrize(
    ("name", "passed", "severity"),
    [
        ("no_erasure_left_unfinished", True, ERROR),
        ("no_due_image_left_waiting", False, WARN),
        ("no_image_lost_on_our_watch", False, ERROR),  # has a rule of its own
    ],
)
def test_what_passes_warns_or_is_told_by_another_rule_is_no_alert(
    place: Workplace, name: str, passed: bool, severity: dg.AssetCheckSeverity
) -> None:
    judge(place, name, passed=passed, severity=severity)
    assert tick(place) == "alerts that fire: 0"


def test_a_check_that_passes_again_is_no_alert(place: Workplace) -> None:
    judge(place, "no_erasure_left_unfinished", passed=False, severity=ERROR)
    judge(place, "no_erasure_left_unfinished", passed=True, severity=ERROR)
    assert tick(place) == "alerts that fire: 0"


def test_the_checks_that_rules_tell_exist() -> None:
    names = {key.name for key in defs.resolve_asset_graph().asset_check_keys}
    assert names >= alerts._TOLD_BY_RULES
