"""What is wrong, by the thresholds. Pure.

Where something was not measured, what would be wrong with it is not known: None, and its alerts stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from platform import node

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.alerts.machine import Severity
from cdn_pipeline.observe.stats import HOUR, HourStats
from cdn_pipeline.observe.thresholds import Judgement


@dataclass(frozen=True, slots=True)
class Signal:
    """Something that a rule finds: a condition without its name."""

    severity: Severity
    words: str
    subject: str = ""


def _as_signals(
    *judgements: Judgement,
    warning: Severity = Severity.WARNING,
    error: Severity = Severity.CRITICAL,
    subject: str = "",
) -> Sequence[Signal]:
    """At most one: the gravest, with the words of all that are not well."""
    wrong = [judgement for judgement in judgements if not judgement.passed]
    if not wrong:
        return []
    severity = error if any(judgement.is_error for judgement in wrong) else warning
    return [Signal(severity, "; ".join(judgement.words for judgement in wrong), subject)]


def _told_of(what: str, judgement: Judgement) -> Judgement:
    return replace(judgement, words=f"{what} {judgement.words}")


# -- parts --


def catalog_away(facts: Facts) -> Sequence[Signal]:
    """A catalog that does not answer."""
    problem = facts.vitals.catalog.problem
    return [] if problem is None else [Signal(Severity.CRITICAL, f"the catalog is away: {problem}")]


def stores_away(facts: Facts) -> Sequence[Signal]:
    """Stores that do not answer: one signal, for both are often one account at one endpoint."""
    stores = {"objects": facts.vitals.objects, "originals": facts.vitals.originals}
    words = [f"the store of {name} is away: {trip.problem}" for name, trip in stores.items() if trip.problem]
    return [Signal(Severity.CRITICAL, "; ".join(words))] if words else []


def full_disk(facts: Facts) -> Sequence[Signal]:
    """The fullest disk under local stores and an embedded catalog."""
    disk = facts.vitals.disk
    if disk is None:
        return []
    judgement = thresholds.judge_disk(disk.used_share)
    return _as_signals(_told_of(f"{disk.folder}:", judgement), subject=f"{node()}:{disk.folder}")


def broken_measurements(facts: Facts) -> Sequence[Signal]:
    """What nobody knows because of an error of ours: one signal, for one error often breaks several."""
    broken = {**facts.vitals.unmeasurable, **facts.unmeasurable}
    words = "; ".join(f"{name} {why}" for name, why in sorted(broken.items()))
    return [Signal(Severity.WARNING, words)] if words else []


def nobody_works(facts: Facts) -> Sequence[Signal] | None:
    """Due work that nobody does, and a daemon that is silent: one cause, one signal."""
    at_work = facts.vitals.workers
    if at_work is None:
        return None
    return _as_signals(
        thresholds.judge_heartbeat(facts.vitals.heartbeat_age),
        thresholds.judge_workers(at_work.leases, at_work.due, at_work.idle_for),
    )


# -- the work --


def deep_queue(facts: Facts) -> Sequence[Signal] | None:
    """The open jobs that somebody waits for."""
    overview = facts.vitals.overview
    return None if overview is None else _as_signals(thresholds.judge_queue_depth(overview.urgent_depth))


def expired_refreshes(facts: Facts) -> Sequence[Signal] | None:
    """What users asked for and no run came to."""
    overview = facts.vitals.overview
    if overview is None:
        return None
    return _as_signals(thresholds.judge_refreshes(overview.refreshes.waiting, overview.refreshes.expired))


def failing_images(facts: Facts) -> Sequence[Signal] | None:
    """Images that fail, of an hour and of a day: one signal, whichever is worse."""
    overview = facts.vitals.overview
    if overview is None:
        return None
    hour, day = overview.last_hour, overview.last_day
    return _as_signals(
        _told_of("in the last hour", thresholds.judge_success_rate(hour.completed, hour.failed)),
        _told_of("in the last 24 h", thresholds.judge_success_of_day(day.completed, day.failed)),
    )


def slow_processing(facts: Facts) -> Sequence[Signal] | None:
    """The mean of the latest hour."""
    overview = facts.vitals.overview
    if overview is None:
        return None
    return [signal for hour in _latest_hour(facts) for signal in _as_signals(_hour_judged(hour))]


def _hour_judged(hour: HourStats) -> Judgement:
    judgement = thresholds.judge_processing_time(hour.avg_processing_time_ms, hour.jobs_completed)
    return _told_of(f"in the hour from {hour.start:%H:%M} UTC", judgement)


def _latest_hour(facts: Facts) -> Sequence[HourStats]:
    """The latest hour that was counted, unless it is long over."""
    hours = facts.vitals.overview.hours[:1] if facts.vitals.overview else ()
    return [hour for hour in hours if facts.vitals.at - hour.start < HOUR_IS_NEWS]


HOUR_IS_NEWS = 3 * HOUR  # it is counted at five past its end, and an hour's run may be late


def lost_images(facts: Facts) -> Sequence[Signal] | None:
    """Images lost on our watch, lately: an alert that nobody can end is heard by nobody."""
    if facts.vitals.overview is None:
        return None
    watch = facts.vitals.overview.watch
    judgement = thresholds.judge_lost(watch.lost, watch.lost_lately)
    return _as_signals(judgement) if judgement.is_error else []


def deadlines_at_risk(facts: Facts) -> Sequence[Signal] | None:
    """Images that expire before we reach them."""
    overview = facts.vitals.overview
    if overview is None:
        return None
    return _as_signals(thresholds.judge_deadlines(overview.feasibility.at_risk, overview.feasibility.words))


def open_breakers(facts: Facts) -> Sequence[Signal] | None:
    """Each host that has been left alone for long."""
    if facts.vitals.overview is None:
        return None
    return [
        Signal(Severity.CRITICAL, host.words, host.host)
        for host in facts.vitals.overview.shut_hosts
        if not thresholds.judge_breakers([host.open_for]).passed
    ]


# -- money --


def growing_stores(facts: Facts) -> Sequence[Signal] | None:
    """The stores against a week ago."""
    if not facts.vitals.catalog.answered or "growth" in facts.unknown:
        return None
    growth = facts.growth
    return [] if growth is None else _as_signals(thresholds.judge_storage_growth(growth.before, growth.now))


def cost_above_budget(facts: Facts) -> Sequence[Signal] | None:
    """A month against its budget, if there is one."""
    if facts.budget_usd is None:
        return []
    if facts.cost is None:
        return None
    return _as_signals(thresholds.judge_cost(facts.cost.words, facts.cost.total, facts.budget_usd))


# -- delivery --


def broken_urls(facts: Facts) -> Sequence[Signal] | None:
    """The latest probes, by what they got."""
    if not _are_probes_known(facts):
        return None
    delivery = facts.vitals.delivery
    return [] if delivery is None else _as_signals(thresholds.judge_urls(delivery.n, delivery.broken))


def slow_urls(facts: Facts) -> Sequence[Signal] | None:
    """The latest probes, by how long it took."""
    if not _are_probes_known(facts):
        return None
    delivery = facts.vitals.delivery
    if delivery is None or delivery.warm is None:
        return []
    return _as_signals(thresholds.judge_first_bytes(delivery.share_in_time, delivery.warm.n))


def _are_probes_known(facts: Facts) -> bool:
    """Whether something can be said of today's delivery; that nothing was ever probed is known as well."""
    vitals, age = facts.vitals, facts.vitals.probes_age
    is_recent = age is None or thresholds.judge_probes(age).passed
    return vitals.catalog.answered and "delivery" not in vitals.unmeasurable and is_recent


def missing_cache(facts: Facts) -> Sequence[Signal] | None:
    """The CDN's hit ratio, where somebody measures it."""
    traffic = facts.vitals.traffic
    if traffic is None or traffic.hit_ratio is None:
        return None
    return _as_signals(thresholds.judge_cache_hits(traffic.hit_ratio), warning=Severity.INFO)


# -- what somebody may want to know --


def new_images(facts: Facts) -> Sequence[Signal] | None:
    """An event: the new images of the latest hour."""
    if facts.new_images is None:
        return None
    return [
        Signal(Severity.INFO, f"{facts.new_images} new images in the hour from {hour.start:%H:%M} UTC", _hour(hour))
        for hour in _latest_hour(facts)
        if facts.new_images
    ]


def hours_work(facts: Facts) -> Sequence[Signal] | None:
    """An event: the work of the latest hour."""
    if facts.vitals.overview is None:
        return None
    return [
        Signal(
            Severity.INFO,
            f"{hour.jobs_processed} jobs ended in the hour from {hour.start:%H:%M} UTC, {hour.jobs_failed} of them "
            f"failed; {hour.total_bytes_processed / 1e6:.1f} MB downloaded",
            _hour(hour),
        )
        for hour in _latest_hour(facts)
        if hour.jobs_processed
    ]


def _hour(hour: HourStats) -> str:
    return f"{hour.start:%Y-%m-%dT%H:00Z}"
