"""The alerting rules for Prometheus say what the pipeline's own rules say."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.alerts.machine import Timing
from cdn_pipeline.observe.alerts.rules import RULES
from cdn_pipeline.observe.alerts.signals import HOUR_IS_NEWS
from cdn_pipeline_tests.deploy.files import RULES_FILE, RULES_TESTS, Promtool, alert_rules, anchors, load_yaml, numbers

pytestmark = pytest.mark.skipif(not RULES_FILE.exists(), reason="installed without the checkout")

SAMPLE = thresholds.MINIMUM_SAMPLE

# The numbers of each rule's expression, in their order.
NUMBERS: Mapping[tuple[str, str], Sequence[float]] = {
    ("catalog_unreachable", "critical"): [0],
    ("store_unreachable", "critical"): [0],
    ("disk_full", "warning"): [1, thresholds.DISK_USED_WARNING],
    ("disk_full", "critical"): [1, thresholds.DISK_USED_ERROR],
    ("cannot_be_measured", "warning"): [0],
    ("no_workers", "critical"): [
        thresholds.NO_WORKERS_ERROR.total_seconds(),
        thresholds.HEARTBEAT_STALE.total_seconds(),
    ],
    ("queue_depth", "warning"): [thresholds.QUEUE_DEPTH_WARNING],
    ("queue_depth", "critical"): [thresholds.QUEUE_DEPTH_ERROR],
    ("refreshes_expired", "warning"): [0],
    ("success_rate", "warning"): [
        *(thresholds.SUCCESS_RATE_WARNING, SAMPLE),
        *(thresholds.SUCCESS_OF_DAY_WARNING, SAMPLE),
    ],
    ("success_rate", "critical"): [
        *(thresholds.SUCCESS_RATE_ERROR, SAMPLE),
        *(thresholds.SUCCESS_OF_DAY_ERROR, SAMPLE),
    ],
    ("images_lost", "critical"): [0],
    ("deadlines_at_risk", "warning"): [0],
    ("breaker_open", "critical"): [thresholds.BREAKER_OPEN_WARNING.total_seconds()],
    ("processing_time", "warning"): [
        thresholds.PROCESSING_TIME_WARNING_MS / 1000,
        SAMPLE,
        HOUR_IS_NEWS.total_seconds(),
    ],
    ("storage_growth", "warning"): [1, thresholds.STORAGE_GROWTH_WARNING, thresholds.STORAGE_GROWTH_FROM],
    ("delivery_broken", "critical"): [0, thresholds.PROBES_STALE.total_seconds()],
    ("delivery_slow", "warning"): [
        thresholds.FIRST_BYTE_SHARE,
        thresholds.MINIMUM_PROBES,
        thresholds.PROBES_STALE.total_seconds(),
    ],
    ("cache_hit_ratio", "info"): [thresholds.CACHE_HIT_RATIO_INFO],
    ("run_failed", "critical"): [0],
    ("check_failed", "critical"): [0],
    ("monthly_cost", "warning"): [0],
    ("new_profile_assets_detected", "info"): [0],
    ("batch_processing_completed", "info"): [0],
}

# Ours hold and clear these before they pass them on.
PASSED_ON = {"run_failed", "check_failed", "monthly_cost", "new_profile_assets_detected", "batch_processing_completed"}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> timedelta:
    """One of Prometheus's times."""
    found = re.fullmatch(r"(\d+)([smhd])", text)
    assert found
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


def key(rule: Mapping[str, Any]) -> tuple[str, str]:
    return rule["alert"], rule["labels"]["severity"]


def timing_of(rule: Mapping[str, Any]) -> tuple[timedelta, timedelta]:
    return seconds(rule.get("for", "0s")), seconds(rule.get("keep_firing_for", "0s"))


def expected(timing: Timing) -> tuple[timedelta, timedelta]:
    return timing.hold_for, timing.clear_for


OURS = [rule for rule in alert_rules() if rule["alert"] in RULES] if RULES_FILE.exists() else []


def test_every_rule_of_ours_is_one_of_prometheus_and_what_only_it_can_say_is_about_the_api() -> None:
    names = {rule["alert"] for rule in alert_rules()}
    assert names >= set(RULES)
    assert names - set(RULES) == {"api_down", "api_errors", "api_slow"}


def test_no_rule_is_there_twice() -> None:
    keys = [key(rule) for rule in alert_rules()]
    assert len(keys) == len(set(keys))


def test_severities_and_thresholds_are_ours() -> None:
    assert {key(rule): numbers(rule["expr"]) for rule in OURS} == NUMBERS


@pytest.mark.parametrize("rule", [pytest.param(rule, id="-".join(key(rule))) for rule in OURS])
def test_a_rule_holds_and_clears_for_as_long_as_ours(rule: Mapping[str, Any]) -> None:
    ours = RULES[rule["alert"]].timing
    if rule["alert"] in PASSED_ON:
        assert timing_of(rule) == (timedelta(0), timedelta(0))
        assert f'rule="{rule["alert"]}"' in rule["expr"]
    else:
        assert timing_of(rule) == expected(ours)


def test_every_rule_leads_to_its_section() -> None:
    for rule in alert_rules():
        page, _, anchor = rule["annotations"]["runbook"].removeprefix("docs/").partition("#")
        assert anchor == rule["alert"]
        assert anchor in anchors(page), rule["alert"]
        assert rule["annotations"]["summary"]


# -- promtool --


def test_every_rule_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    steps = [
        (step, each["input_series"])
        for path in RULES_TESTS
        for each in load_yaml(path)["tests"]
        for step in each["alert_rule_test"]
    ]
    fired = {(step["alertname"], alert["exp_labels"]["severity"]) for step, _ in steps for alert in step["exp_alerts"]}
    assert fired == {key(rule) for rule in alert_rules()}
    silent = {
        step["alertname"]
        for step, series in steps
        if step["exp_alerts"] and any('case="well"' in each["series"] for each in series)
    }
    # Of `api_down` the instance that is silent is the one that is up.
    assert silent == {rule["alert"] for rule in alert_rules()} - {"api_down"}


def test_promtool_accepts_the_rules(promtool: Promtool) -> None:
    promtool(["check", "rules", "--lint-fatal", str(RULES_FILE)])


def test_every_rule_fires_at_its_boundary_and_is_silent_below_it(promtool: Promtool) -> None:
    promtool(["test", "rules", *map(str, RULES_TESTS)])
