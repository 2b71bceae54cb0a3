"""`cdn-pipeline alerts`: what fires, what is over, and whether messages arrive."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cdn_pipeline.observe.alerts.book import evaluate
from cdn_pipeline.observe.alerts.machine import Condition, Severity
from cdn_pipeline.observe.alerts.rules import TIMINGS
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.observe.alerts.receiver import Webhook, running_webhook


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with running_webhook() as webhook:
        monkeypatch.setenv("ALERT_URLS", webhook.url)
        yield webhook


def fail_job(connection: sa.Connection, *jobs: str) -> None:
    found = [Condition("run_failed", job, Severity.CRITICAL, f"the last run of {job} failed") for job in jobs]
    evaluate(connection, found, TIMINGS, {"run_failed"})


def test_a_system_that_is_well_says_so(invoke: Invoke, connection: sa.Connection) -> None:
    result = invoke("alerts")
    assert result.exit_code == 0
    assert "Nothing fires. Nobody is told: set ALERT_URLS." in result.stdout


def test_what_fires_is_shown_with_its_section_of_the_runbook(
    invoke: Invoke, connection: sa.Connection, webhook: Webhook
) -> None:
    fail_job(connection, "clean_up")
    result = invoke("alerts")
    assert result.exit_code == 1
    assert "1 firing. Receivers: 1, told of warning and above." in result.stdout
    assert "A job's last run failed: clean_up" in result.stdout
    assert "docs/runbook.md#run_failed" in result.stdout
    assert "not yet" in result.stdout


def test_what_is_over_is_history(invoke: Invoke, connection: sa.Connection) -> None:
    fail_job(connection, "clean_up")
    connection.execute(
        sa.text("UPDATE cdn_alerts SET since = now() - interval '3 hours', clear_since = now() - interval '1 hour'")
    )
    fail_job(connection)
    result = invoke("alerts")
    assert result.exit_code == 0
    assert "Resolved" in result.stdout
    assert "2 h" in result.stdout


def test_a_test_message_arrives_or_says_why_not(invoke: Invoke, connection: sa.Connection, webhook: Webhook) -> None:
    result = invoke("alerts", "--test")
    assert (result.exit_code, webhook.titles) == (0, ["[test] cdn_pipeline: alerts arrive here"])
    assert "1 (JSON): taken" in result.stdout
    webhook.is_down = True
    result = invoke("alerts", "--test")
    assert result.exit_code == 1
    assert "503" in result.stdout
