"""Each rule at its boundary, and what cannot be judged."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.alerts.machine import Condition, Severity
from cdn_pipeline.observe.alerts.messages import runbook_section
from cdn_pipeline.observe.alerts.rules import RULES, evaluate_rules
from cdn_pipeline.observe.cost import MonthlyCost
from cdn_pipeline.observe.feasibility import Feasibility
from cdn_pipeline.observe.hosts import ShutHost
from cdn_pipeline.observe.overview import Outcomes
from cdn_pipeline.observe.probes import Delivery, Percentiles
from cdn_pipeline.observe.refreshes import Refreshes
from cdn_pipeline.observe.standing import Watch
from cdn_pipeline.observe.stats import StorageGrowth
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import Disk
from cdn_pipeline.observe.workers import Workers
from cdn_pipeline.settings import project_root
from cdn_pipeline_tests.observe.alerts.facts import AWAY, NOW, facts, hour, overview, queue_of, vitals, without_catalog

WARNING, CRITICAL, INFO = Severity.WARNING, Severity.CRITICAL, Severity.INFO
RUNBOOK = project_root() / "docs" / "runbook.md"


def found(given: Facts, rule: str) -> list[Condition]:
    judged = evaluate_rules(given)
    assert rule in judged.rules
    return [condition for condition in judged.conditions if condition.rule == rule]


def severity(given: Facts, rule: str) -> Severity | None:
    """Of the one condition that holds, if one does."""
    conditions = found(given, rule)
    assert len(conditions) <= 1
    return conditions[0].severity if conditions else None


def with_vitals(**changes: Any) -> Facts:
    return facts(vitals=vitals(**changes))


def with_overview(**changes: Any) -> Facts:
    return with_vitals(overview=overview(**changes))


def test_a_system_that_is_well_alerts_nobody() -> None:
    assert evaluate_rules(facts()).conditions == ()


@pytest.mark.parametrize(("depth", "expected"), [(1000, None), (1001, WARNING), (2000, WARNING), (2001, CRITICAL)])
def test_the_depth_of_the_queue(depth: int, expected: Severity | None) -> None:
    assert severity(with_overview(queue=queue_of(depth)), "queue_depth") == expected


def test_a_backfill_is_no_deep_queue() -> None:
    assert severity(with_overview(queue=queue_of(5000, priority=6)), "queue_depth") is None


@pytest.mark.parametrize(("waiting", "expired", "expected"), [(100, 0, None), (0, 1, WARNING), (3, 50, WARNING)])
def test_users_refreshes_that_no_run_came_to(waiting: int, expired: int, expected: Severity | None) -> None:
    given = with_overview(refreshes=Refreshes(waiting=waiting, expired=expired))
    assert severity(given, "refreshes_expired") == expected


@pytest.mark.parametrize(
    ("hour_failed", "day_failed", "expected"),
    [
        (5, 100, None),
        (6, 0, WARNING),
        (10, 0, WARNING),
        (11, 0, CRITICAL),
        (0, 101, WARNING),
        (0, 200, WARNING),
        (0, 201, CRITICAL),
        (6, 201, CRITICAL),
    ],
)
def test_the_success_rate_of_an_hour_or_a_day(hour_failed: int, day_failed: int, expected: Severity | None) -> None:
    hour, day = Outcomes(100 - hour_failed, hour_failed), Outcomes(1000 - day_failed, day_failed)
    given = with_overview(last_hour=hour, last_day=day)
    assert severity(given, "success_rate") == expected


def test_few_images_make_no_rate() -> None:
    given = with_overview(last_hour=Outcomes(0, thresholds.MINIMUM_SAMPLE - 1))
    assert severity(given, "success_rate") is None


@pytest.mark.parametrize(("minutes", "expected"), [(10, None), (10.1, CRITICAL)])
def test_nobody_works_while_work_is_due(minutes: float, expected: Severity | None) -> None:
    idle = Workers(runs=0, leases=0, due=3, idle_for=timedelta(minutes=minutes))
    assert severity(with_vitals(workers=idle), "no_workers") == expected


@pytest.mark.parametrize(("minutes", "expected"), [(5, None), (5.1, CRITICAL)])
def test_the_daemon_is_silent(minutes: float, expected: Severity | None) -> None:
    assert severity(with_vitals(heartbeat=NOW - timedelta(minutes=minutes)), "no_workers") == expected


def test_a_dead_daemon_and_idle_work_are_one_alert() -> None:
    idle = Workers(runs=0, leases=0, due=3, idle_for=timedelta(hours=1))
    [condition] = found(with_vitals(workers=idle, heartbeat=NOW - timedelta(hours=1)), "no_workers")
    assert "nobody has worked for 60 min" in condition.words
    assert "daemon" in condition.words


@pytest.mark.parametrize("away", [{"objects"}, {"originals"}, {"objects", "originals"}])
def test_stores_that_are_away_are_one_alert_that_names_them(away: set[str]) -> None:
    [condition] = found(with_vitals(**dict.fromkeys(away, AWAY)), "store_unreachable")
    assert (condition.subject, condition.severity) == ("", CRITICAL)
    assert {name for name in ("objects", "originals") if f"the store of {name} " in condition.words} == away


def test_a_catalog_that_is_away_is_one_alert_and_leaves_what_only_it_knows_unjudged() -> None:
    judged = evaluate_rules(Facts(without_catalog(objects=AWAY)))
    assert {condition.rule for condition in judged.conditions} == {"catalog_unreachable", "store_unreachable"}
    assert not judged.rules & {"queue_depth", "success_rate", "no_workers", "breaker_open", "delivery_broken"}


@pytest.mark.parametrize(("milliseconds", "expected"), [(2000, None), (2001, WARNING)])
def test_the_mean_processing_time_of_the_latest_hour(milliseconds: int, expected: Severity | None) -> None:
    hours = (hour(avg_processing_time_ms=milliseconds),)
    assert severity(with_overview(hours=hours), "processing_time") == expected


def test_an_hour_that_is_long_over_is_no_news() -> None:
    old = hour(NOW - timedelta(hours=4), avg_processing_time_ms=9000)
    given = facts(vitals=vitals(overview=overview(hours=(old,))), new_images=5)
    assert evaluate_rules(given).conditions == ()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(10, 12, None), (10, 12.01, WARNING), (9.9, 99, None), (10, 5, None)],
)
def test_the_growth_of_the_stores_within_a_week(before: float, now: float, expected: Severity | None) -> None:
    grown = StorageGrowth(int(before * 2**30), int(now * 2**30))
    assert severity(facts(growth=grown), "storage_growth") == expected


def shut(minutes: float, host: str = "cdn.example") -> ShutHost:
    opened_at = NOW - timedelta(minutes=minutes)
    kind = FailureKind.CONNECTION_FAILED
    return ShutHost(host, kind, 5, opened_at, NOW, timedelta(minutes=minutes), images=3)


@pytest.mark.parametrize(("minutes", "expected"), [(5, None), (5.1, CRITICAL)])
def test_a_breaker_that_stays_open(minutes: float, expected: Severity | None) -> None:
    assert severity(with_overview(shut_hosts=(shut(minutes),)), "breaker_open") == expected


def test_each_host_is_an_alert_of_its_own() -> None:
    hosts = (shut(9, "a.example"), shut(8, "b.example"), shut(1, "c.example"))
    conditions = found(with_overview(shut_hosts=hosts), "breaker_open")
    assert [condition.subject for condition in conditions] == ["a.example", "b.example"]


@pytest.mark.parametrize(("at_risk", "expected"), [(0, None), (1, WARNING)])
def test_images_that_expire_before_we_reach_them(at_risk: int, expected: Severity | None) -> None:
    feasibility = Feasibility(1.0, 10, at_risk, 0, None, "some words")
    assert severity(with_overview(feasibility=feasibility), "deadlines_at_risk") == expected


@pytest.mark.parametrize(("lost", "lately", "expected"), [(0, 0, None), (3, 0, None), (3, 1, CRITICAL)])
def test_images_that_were_lost_lately(lost: int, lately: int, expected: Severity | None) -> None:
    assert severity(with_overview(watch=Watch(lost, lately, 0, ())), "images_lost") == expected


@pytest.mark.parametrize(("usd", "expected"), [(10.0, None), (10.01, WARNING)])
def test_a_month_that_costs_more_than_its_budget(usd: float, expected: Severity | None) -> None:
    assert severity(facts(cost=MonthlyCost(usd, 0.0, None), budget_usd=10.0), "monthly_cost") == expected


def test_without_a_budget_nothing_costs_too_much() -> None:
    assert severity(facts(cost=MonthlyCost(1e6, 0.0, None)), "monthly_cost") is None


def delivery(broken: int = 0, in_time: float = 1.0) -> Delivery:
    some = Percentiles(200, 10.0, 20.0, 30.0)
    return Delivery(NOW, 200, broken, (), some, some, None, None, in_time, None)


@pytest.mark.parametrize(("broken", "expected"), [(0, None), (1, CRITICAL)])
def test_a_published_url_that_is_broken(broken: int, expected: Severity | None) -> None:
    assert severity(with_vitals(delivery=delivery(broken)), "delivery_broken") == expected


@pytest.mark.parametrize(("share", "expected"), [(0.99, None), (0.98, WARNING)])
def test_published_urls_that_answer_slowly(share: float, expected: Severity | None) -> None:
    assert severity(with_vitals(delivery=delivery(in_time=share)), "delivery_slow") == expected


@pytest.mark.parametrize("rule", ["delivery_broken", "delivery_slow"])
def test_probes_of_long_ago_are_not_judged(rule: str) -> None:
    recent = replace(delivery(broken=1, in_time=0.5), probed_at=NOW - thresholds.PROBES_STALE)
    assert found(with_vitals(delivery=recent), rule)
    old = replace(recent, probed_at=recent.probed_at - timedelta(minutes=1))
    assert rule not in evaluate_rules(with_vitals(delivery=old)).rules


@pytest.mark.parametrize("rule", ["delivery_broken", "delivery_slow"])
def test_delivery_that_cannot_be_measured_is_not_judged(rule: str) -> None:
    assert rule in evaluate_rules(with_vitals(delivery=None)).rules  # nothing was probed yet
    assert rule not in evaluate_rules(with_vitals(delivery=None, unmeasurable={"delivery": "no such column"})).rules


@pytest.mark.parametrize(("free", "expected"), [(150, None), (149, WARNING), (50, WARNING), (49, CRITICAL)])
def test_a_disk_that_fills(free: int, expected: Severity | None) -> None:
    given = with_vitals(disk=Disk("/srv/objects", 1000, free))
    assert severity(given, "disk_full") == expected
    assert all(each.subject.endswith(":/srv/objects") for each in found(given, "disk_full"))


def test_all_that_cannot_be_measured_is_one_warning_that_names_it() -> None:
    given = facts(
        vitals=vitals(overview=None, unmeasurable={"overview": "could not be measured: ValueError"}),
        unknown=frozenset({"growth"}),
        unmeasurable={"growth": "could not be measured: KeyError"},
    )
    [condition] = found(given, "cannot_be_measured")
    assert condition.severity is WARNING
    assert condition.words == "growth could not be measured: KeyError; overview could not be measured: ValueError"
    assert not evaluate_rules(given).rules & {"storage_growth", "queue_depth"}


@pytest.mark.parametrize(("ratio", "expected"), [(0.98, None), (0.979, INFO)])
def test_a_cache_that_misses_often_informs(ratio: float, expected: Severity | None) -> None:
    assert severity(with_vitals(traffic=Traffic(hit_ratio=ratio)), "cache_hit_ratio") == expected


def test_a_cache_that_nobody_measures_is_not_judged() -> None:
    assert "cache_hit_ratio" not in evaluate_rules(facts()).rules


def test_new_images_and_an_hours_work_inform_once_an_hour() -> None:
    given = facts(vitals=vitals(overview=overview(hours=(hour(),))), new_images=7)
    events = {each.rule: (each.severity, each.subject) for each in evaluate_rules(given).conditions}
    eleven = (INFO, "2030-01-01T11:00Z")
    assert events == {"new_profile_assets_detected": eleven, "batch_processing_completed": eleven}
    assert not any(RULES[name].timing.tells_end for name in events)


# -- the runbook --


@pytest.mark.skipif(not RUNBOOK.exists(), reason="installed without the checkout")
@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_section_in_the_runbook(name: str) -> None:
    page, _, anchor = runbook_section(name).partition("#")
    headings = re.findall(r"^#+ (.+)$", (project_root() / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert anchor in anchors
