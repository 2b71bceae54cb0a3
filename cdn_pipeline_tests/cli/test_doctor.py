"""The doctor's words on a terminal, and for programs."""

import json
from collections.abc import Mapping

import pytest

from cdn_pipeline.observe.doctor.examination import CHECKS
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.observe.doctor.set_ups import cloudflare, healthy

__all__ = ["cloudflare", "healthy"]


@pytest.fixture(autouse=True)
def _set_up(invoke: Invoke, healthy: Mapping[str, str]) -> None:
    """The whole environment, after that of `invoke`."""


def test_a_healthy_set_up_ends_with_status_0_and_says_that_all_is_well(invoke: Invoke) -> None:
    result = invoke("doctor")
    assert result.exit_code == 0, result.output
    assert all(f"✓ {check.name}" in result.output for check in CHECKS)
    assert "Nothing stands in the way of a run." in result.output


def test_what_has_failed_is_shown_with_its_cure_and_ends_with_status_1(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "elsewhere")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "✗ Dagster home" in result.output
    assert "→ Make the folder" in result.output
    assert "failed: 1" in result.output


def test_lines_to_paste_are_not_broken_however_narrow_the_terminal(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME")
    result = invoke("doctor", columns=40)
    assert result.exit_code == 0
    assert any(line.strip().startswith("export DAGSTER_HOME=/") for line in result.output.splitlines())


def test_programs_get_the_same_as_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CF_API_TOKEN", "another")
    result = invoke("doctor", "--json")
    assert result.exit_code == 1
    told = json.loads(result.output)
    states = {check["name"]: check["state"] for check in told["checks"]}
    assert (told["passed"], list(states)) == (False, [check.name for check in CHECKS])
    assert (states["Cloudflare token"], states["Cloudflare purge"], states["catalog"]) == ("failed", "skipped", "ok")
