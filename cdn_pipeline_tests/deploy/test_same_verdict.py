"""Vitals at the thresholds are judged alike by our rules and, from what `/metrics` makes of them, by Prometheus.

So a metric cannot come to mean something else than what the rule looks at.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.alerts.machine import Severity
from cdn_pipeline.observe.alerts.rules import evaluate_rules
from cdn_pipeline.observe.exposition import metrics_of
from cdn_pipeline.observe.feasibility import Feasibility
from cdn_pipeline.observe.hosts import ShutHost
from cdn_pipeline.observe.overview import Outcomes
from cdn_pipeline.observe.probes import Delivery, Percentiles
from cdn_pipeline.observe.refreshes import Refreshes
from cdn_pipeline.observe.standing import Watch
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import Disk, Vitals
from cdn_pipeline.observe.workers import Workers
from cdn_pipeline_tests.deploy.files import RULES_FILE, Promtool, alert_rules
from cdn_pipeline_tests.observe.alerts.facts import AWAY, NOW, hour, overview, queue_of, vitals, without_catalog

pytestmark = pytest.mark.skipif(not RULES_FILE.exists(), reason="installed without the checkout")

# Evaluation from more than the vitals, and passed on; and a week ago is no part of them.
ELSEWHERE = {"new_profile_assets_detected", "batch_processing_completed", "storage_growth"}

LONGER_THAN_ANY_HOLDS = "61m"
A_MINUTE = timedelta(minutes=1)
SAMPLE = thresholds.MINIMUM_SAMPLE


def cases() -> Iterator[Vitals]:
    """Each number at its threshold, and just past it."""
    yield vitals()
    yield without_catalog()
    yield without_catalog(objects=AWAY)
    yield vitals(originals=AWAY)
    for idle in (thresholds.NO_WORKERS_ERROR, thresholds.NO_WORKERS_ERROR + A_MINUTE):
        yield vitals(workers=Workers(runs=0, leases=0, due=3, idle_for=idle))
        yield vitals(heartbeat=NOW - thresholds.HEARTBEAT_STALE, workers=Workers(0, 0, 3, idle))
    yield vitals(heartbeat=NOW - thresholds.HEARTBEAT_STALE - A_MINUTE)
    for depth in (1000, 1001, 2000, 2001):
        yield vitals(overview=overview(queue=queue_of(depth)))
        yield vitals(overview=overview(queue=queue_of(depth, priority=6)))
    for of_hour, of_day in ((50, 100), (51, 100), (100, 101), (101, 0), (50, 201), (51, 200)):
        outcomes = {"last_hour": Outcomes(1000 - of_hour, of_hour), "last_day": Outcomes(1000 - of_day, of_day)}
        yield vitals(overview=overview(**outcomes))
    for tried in (SAMPLE - 1, SAMPLE):
        yield vitals(overview=overview(last_hour=Outcomes(0, tried), last_day=Outcomes(0, 0)))
    for expired in (0, 1):
        yield vitals(overview=overview(refreshes=Refreshes(waiting=3, age=A_MINUTE, expired=expired)))
    for lost, lately in ((3, 0), (3, 1)):
        yield vitals(overview=overview(watch=Watch(lost, lately, 0, ())))
    yield vitals(overview=overview(feasibility=Feasibility(1.0, 10, 1, 0, None, "some words")))
    for open_for in (thresholds.BREAKER_OPEN_WARNING, thresholds.BREAKER_OPEN_WARNING + A_MINUTE):
        yield vitals(overview=overview(shut_hosts=(ShutHost("a.example", None, 5, NOW - open_for, NOW, open_for, 3),)))
    for mean, completed, ago in (
        (2000, 100, 1),
        (2001, SAMPLE, 1),
        (2001, SAMPLE - 1, 1),
        (2001, 100, 2),
        (2001, 100, 4),
    ):
        counted = hour(
            NOW - timedelta(hours=ago), avg_processing_time_ms=mean, jobs_processed=completed + 7, jobs_failed=7
        )
        yield vitals(overview=overview(hours=(counted,)))
    yield from of_delivery_and_machine()


def of_delivery_and_machine() -> Iterator[Vitals]:
    """The CDN, the disks, and what cannot be measured."""
    for broken, share, n in ((0, 0.99, 100), (1, 0.989, 100), (1, 0.5, 99)):
        yield vitals(delivery=probed(broken, share, n))
    for ratio in (0.98, 0.979):
        yield vitals(traffic=Traffic(hit_ratio=ratio))
    for age in (thresholds.PROBES_STALE, thresholds.PROBES_STALE + A_MINUTE):
        yield vitals(delivery=replace(probed(1, 0.5, 100), probed_at=NOW - age))
    for free in (150, 149, 50, 49):
        yield vitals(disk=Disk("/somewhere", 1000, free))
    yield vitals(overview=None, unmeasurable={"overview": "could not be measured: ValueError: what"})


def probed(broken: int, share: float, timed: int) -> Delivery:
    """Of 200 URLs, so many were timed warm."""
    cold, warm = Percentiles(200, 10.0, 20.0, 30.0), Percentiles(timed, 10.0, 20.0, 30.0)
    return Delivery(NOW, 200, broken, (), cold, warm, None, None, share, None)


def series(name: str, given: Vitals) -> Iterator[Mapping[str, str]]:
    """What Prometheus sees of the vitals, for as long as the test lasts."""
    for family in metrics_of(given):
        for sample in family.samples:
            labels = {"case": name, **sample.labels}
            written = ",".join(f"{label}={json.dumps(value)}" for label, value in labels.items())
            yield {"series": f"{sample.name}{{{written}}}", "values": f"{sample.value:.17g}x70"}


def verdict(given: Vitals) -> set[tuple[str, str]]:
    """What Prometheus has to say: our findings; it tells the warning of what is critical as well."""
    conditions = [each for each in evaluate_rules(Facts(given)).conditions if each.rule not in ELSEWHERE]
    found = {(each.rule, each.severity.value) for each in conditions}
    return found | {(rule, Severity.WARNING.value) for rule, _ in found if (rule, Severity.WARNING.value) in RULES_KEYS}


RULES_KEYS = {(rule["alert"], rule["labels"]["severity"]) for rule in alert_rules()} if RULES_FILE.exists() else set()


def test_prometheus_finds_what_the_pipeline_finds(promtool: Promtool, tmp_path: Path) -> None:
    named = {f"case {number}": given for number, given in enumerate(cases())}
    expected = {(name, *found) for name, given in named.items() for found in verdict(given)}
    assert {rule for _, rule, _ in expected} >= {"queue_depth", "success_rate", "no_workers", "delivery_slow"}
    firing: dict[str, Any] = {
        "expr": 'group by (case, alertname, severity) (ALERTS{alertstate="firing",alertname!="api_down"})',
        "eval_time": LONGER_THAN_ANY_HOLDS,
        "exp_samples": [
            {"labels": f'{{case="{name}",alertname="{rule}",severity="{severity}"}}', "value": 1}
            for name, rule, severity in sorted(expected)
        ],
    }
    document = {
        "rule_files": [str(RULES_FILE)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [each for name, given in named.items() for each in series(name, given)],
                "promql_expr_test": [firing],
            }
        ],
    }
    path = tmp_path / "vitals_test.yml"
    path.write_text(json.dumps(document))  # JSON is YAML
    promtool(["test", "rules", str(path)])
