"""The rules, as data: what is looked at, for how long it has to be wrong, and what to do first.

Each has a section of its name in docs/runbook.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from cdn_pipeline.observe.alerts import signals
from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.alerts.machine import Condition, Timing
from cdn_pipeline.observe.alerts.signals import Signal

Find = Callable[[Facts], Iterable[Signal] | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is looked at, and how its alerts are told. Without `find` somebody else than `evaluate_rules` looks."""

    name: str
    title: str
    timing: Timing
    first: str  # what to do first
    find: Find | None = None
    is_local: bool = False  # what is found is the evaluator's own view: from another machine it may look otherwise

    def conditions(self, facts: Facts) -> Sequence[Condition] | None:
        """What the rule finds, as the state machine takes it; None if it cannot be judged."""
        found = self.find(facts) if self.find else None
        return None if found is None else as_conditions(self.name, found)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The rules that could be judged, and what they found wrong."""

    rules: frozenset[str]
    conditions: tuple[Condition, ...]

    def __or__(self, other: "Evaluation") -> "Evaluation":
        """Both: for rules that are judged in different places."""
        return Evaluation(self.rules | other.rules, self.conditions + other.conditions)


NOTHING_EVALUATED = Evaluation(frozenset(), ())


def evaluate_rules(facts: Facts) -> Evaluation:
    """What every rule finds."""
    found = {name: rule.conditions(facts) for name, rule in RULES.items()}
    known = {name: each for name, each in found.items() if each is not None}
    return Evaluation(frozenset(known), tuple(chain.from_iterable(known.values())))


def as_conditions(rule: str, found: Iterable[Signal]) -> Sequence[Condition]:
    """The signals of one rule, as the state machine takes them."""
    return [Condition(rule, each.subject, each.severity, each.words) for each in found]


_AT_ONCE = timedelta(0)


def _minutes(hold_for: float, clear_for: float) -> Timing:
    return Timing(timedelta(minutes=hold_for), timedelta(minutes=clear_for))


_BY_THE_HOUR = _minutes(0, 65)  # a figure that comes every hour is well again when it was so twice
_BY_THE_DAY = _minutes(0, 24 * 60)
_EVENT = Timing(_AT_ONCE, timedelta(minutes=5), tells_end=False)  # one overview may be 15 s older than another

CATALOG_UNREACHABLE = Rule(
    "catalog_unreachable",
    "The catalog is away",
    _minutes(0.3, 0.5),
    "Bring its Postgres back (CATALOG_DATABASE_URL); nothing is lost, what is due goes on by itself.",
    signals.catalog_away,
)

_ALL = (
    CATALOG_UNREACHABLE,
    Rule(
        "store_unreachable",
        "A store is away",
        _minutes(0.5, 1),
        "Is the endpoint reachable, are keys and bucket right? Nothing is lost, what is due goes on by itself.",
        signals.stores_away,
        is_local=True,
    ),
    Rule(
        "disk_full",
        "A disk is nearly full",
        _minutes(5, 10),
        "Make room: `cdn-pipeline clean-up` tells what nobody needs. Postgres stops when nothing is left.",
        signals.full_disk,
        is_local=True,
    ),
    Rule(
        "cannot_be_measured",
        "Something cannot be measured",
        _minutes(15, 15),
        "The log has the traceback. Is the schema this version's (`cdn-pipeline migrate`)? Otherwise report it.",
        signals.broken_measurements,
        is_local=True,
    ),
    Rule(
        "no_workers",
        "Nobody works",
        _minutes(2, 2),  # so long it takes after an outage of the catalog until sensors tick again and a run works
        "Is Dagster's daemon running, and its sensor on? `cdn-pipeline status` shows queue and runs.",
        signals.nobody_works,
    ),
    Rule(
        "queue_depth",
        "The queue is deep",
        _minutes(5, 10),
        "Look whether runs are working; if they are, let more of them work at once.",
        signals.deep_queue,
    ),
    Rule(
        "refreshes_expired",
        "Users' refreshes do not come",
        _minutes(0, 10),  # they have waited for an hour when they expire
        "Is the sensor on, and does Dagster's daemon run? Asking again opens a new refresh at once.",
        signals.expired_refreshes,
    ),
    Rule(
        "success_rate",
        "Images fail",
        _minutes(5, 15),
        "`cdn-pipeline status` counts them by kind of failure, and says of each what to do.",
        signals.failing_images,
    ),
    Rule(
        "images_lost",
        "Images were lost on our watch",
        _minutes(5, 30),
        "`cdn-pipeline status`, then `explain` one of them: why did it wait? A fresh URL heals it.",
        signals.lost_images,
    ),
    Rule(
        "deadlines_at_risk",
        "Images will expire before we reach them",
        _minutes(10, 30),
        "Let more runs work at once; `cdn-pipeline queue hold --priority 10` keeps re-encoding out of their way.",
        signals.deadlines_at_risk,
    ),
    Rule(
        "breaker_open",
        "A host is left alone",
        _minutes(0, 5),  # it has been open for five minutes when the threshold finds it
        "Does one host fail, or all of them? One heals by itself; all: look at this machine's way out.",
        signals.open_breakers,
    ),
    Rule(
        "processing_time",
        "Images take long",
        _BY_THE_HOUR,
        "Which stage? `processing_stats` in Dagster shows download, transcode and upload apart.",
        signals.slow_processing,
    ),
    Rule(
        "storage_growth",
        "The stores grow fast",
        _BY_THE_DAY,
        "Was a rollout or a backfill started? If not: does clean-up run?",
        signals.growing_stores,
    ),
    Rule(
        "monthly_cost",
        "A month costs more than its budget",
        _BY_THE_DAY,
        "Which part is it: storage, writes or reads? Raise MONTHLY_BUDGET_USD if that is as it should be.",
        signals.cost_above_budget,
    ),
    Rule(
        "delivery_broken",
        "A published URL is broken",
        _BY_THE_HOUR,
        "`cdn-pipeline verify --all --repair`, if its object is gone; otherwise look at the CDN.",
        signals.broken_urls,
    ),
    Rule(
        "delivery_slow",
        "Published URLs answer slowly",
        _BY_THE_HOUR,
        "Are misses slow, or hits too? The probes' metadata in Dagster tell them apart.",
        signals.slow_urls,
    ),
    Rule(
        "cache_hit_ratio",
        "The CDN's cache misses often",
        _minutes(60, 60),
        "Nothing, right after a backfill or a purge: caches fill. Otherwise look at the zone's cache rules.",
        signals.missing_cache,
    ),
    Rule(
        "run_failed",
        "A job's last run failed",
        _minutes(0, 10),
        "Look at the run's error in Dagster. What it had not finished is due, and the next run takes it.",
    ),
    Rule(
        "check_failed",
        "A check failed",
        _minutes(0, 10),
        "The check's description in Dagster says what to do.",
    ),
    Rule(
        "new_profile_assets_detected",
        "New images",
        _EVENT,
        "Nothing.",
        signals.new_images,
    ),
    Rule(
        "batch_processing_completed",
        "An hour's work is done",
        _EVENT,
        "Nothing.",
        signals.hours_work,
    ),
)

RULES: Mapping[str, Rule] = {rule.name: rule for rule in _ALL}
TIMINGS: Mapping[str, Timing] = {rule.name: rule.timing for rule in _ALL}
LOCAL_RULES = frozenset(rule.name for rule in _ALL if rule.is_local)
