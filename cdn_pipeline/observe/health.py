"""How healthy the whole is: every number of the overview judged, and of each that is not well what to do first."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cdn_pipeline.observe.feasibility import Feasibility
from cdn_pipeline.observe.overview import Overview
from cdn_pipeline.observe.shares import in_percent
from cdn_pipeline.observe.thresholds import (
    Judgement,
    judge_breakers,
    judge_deadlines,
    judge_health,
    judge_lost,
    judge_oldest_due,
    judge_queue_depth,
    judge_refreshes,
    judge_scans,
    judge_switch,
)


class Health(StrEnum):
    """The state of the whole or of a part; declared from the worst to the best."""

    UNHEALTHY = "unhealthy"
    DEGRADED = "degraded"
    HEALTHY = "healthy"

    @property
    def rank(self) -> int:
        """0 is the worst."""
        return list(Health).index(self)

    @classmethod
    def of(cls, judgement: Judgement) -> "Health":
        """A warning is degraded, an error unhealthy."""
        if judgement.passed:
            return cls.HEALTHY
        return cls.UNHEALTHY if judgement.is_error else cls.DEGRADED


class PartName(StrEnum):
    """What the whole is made of, as health tells it."""

    CATALOG = "catalog"
    OBJECTS = "objects"
    ORIGINALS = "originals"
    QUEUE = "queue"
    WORKERS = "workers"
    PIPELINE = "pipeline"  # what became of the images
    HOSTS = "hosts"  # whom downloads ask
    SOURCES = "sources"  # the application database's rows
    DELIVERY = "delivery"
    CACHE = "cache"  # the CDN's
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Judged:
    """A number of a part, judged; if it is not well, what to do first and which section of the runbook to read."""

    part: PartName
    judgement: Judgement
    first: str
    section: str

    @property
    def health(self) -> Health:
        """What the judgement means."""
        return Health.of(self.judgement)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what to do first."""

    health: Health
    words: str
    first: str


@dataclass(frozen=True, slots=True)
class CheckUp:
    """The health of the whole, in a sentence, and what it suffers from, the worst first."""

    health: Health
    words: str
    findings: tuple[Finding, ...]


def check_up(overview: Overview) -> CheckUp:
    """Judges the overview by the thresholds."""
    found = [
        Finding(judged.health, judged.judgement.words, judged.first)
        for judged in judge(overview)
        if not judged.judgement.passed
    ]
    findings = tuple(sorted(found, key=lambda finding: finding.health.rank))
    health = findings[0].health if findings else Health.HEALTHY
    return CheckUp(health, "; ".join(finding.words for finding in findings) or _all_is_well(overview), findings)


def _all_is_well(overview: Overview) -> str:
    if not overview.images.total:
        return "no image is known yet; a run of `publish_images` reads the source rows"
    work = f"{overview.depth} in the queue" if overview.depth else "nothing left to do"
    return f"{in_percent(overview.images.published_share)} of {overview.images.total} images are published, {work}"


def judge(overview: Overview) -> Iterator[Judged]:
    """Every number of the overview that is judged. The gravest come first."""
    lost = judge_lost(overview.watch.lost, overview.watch.lost_lately)
    yield Judged(PartName.PIPELINE, lost, _look_at_a_lost_image(overview), "checks")
    success = judge_health(overview.last_day.completed, overview.last_day.failed)
    yield Judged(PartName.PIPELINE, success, _mend_the_most_frequent_failure(overview), "failure-kinds")
    oldest = judge_oldest_due(overview.oldest_due.age)
    yield Judged(PartName.QUEUE, oldest, _start_a_run(overview.oldest_due.shard), "what-runs-by-itself")
    more = "Look whether runs are working; if they are, let more of them work at once."
    yield Judged(PartName.QUEUE, judge_queue_depth(overview.urgent_depth), more, "what-runs-by-itself")
    wanted = judge_refreshes(overview.refreshes.waiting, overview.refreshes.expired)
    nobody = "Look whether Dagster's daemon runs and its sensor is on."
    yield Judged(PartName.QUEUE, wanted, nobody, "a-users-refresh-does-not-come")
    breakers = judge_breakers([host.open_for for host in overview.shut_hosts])
    yield Judged(PartName.HOSTS, breakers, _look_at_the_host(overview), "a-host-does-not-answer")
    deadlines = judge_deadlines(overview.feasibility.at_risk, overview.feasibility.words)
    yield Judged(PartName.QUEUE, deadlines, _hurry(overview.feasibility), "checks")
    scanned = judge_scans(overview.scans.begun, len(overview.scans.stale))
    night = "Look whether `nightly_freshness` ran last night, and whether its schedule is on."
    yield Judged(PartName.SOURCES, scanned, night, "what-runs-by-itself")
    if not overview.policy.is_everybody:
        yield _switch(overview)


def _switch(overview: Overview) -> Judged:
    policy, now = overview.policy, overview.now
    off_for = now - policy.off_since if policy.off_since else None
    comes_back_in = policy.off_until - now if policy.off_until else None
    switch_on = "`cdn-pipeline cdn on` gives frontends CDN URLs again, once what was wrong with them is mended."
    judgement = judge_switch(off_for, comes_back_in, policy.percentage)
    return Judged(PartName.DELIVERY, judgement, switch_on, "delivery-broken-or-slow-urls")


def _look_at_the_host(overview: Overview) -> str:
    if not overview.shut_hosts:
        return ""
    failure = overview.shut_hosts[0].failure
    return f"{overview.shut_hosts[0].words}. {failure.advice if failure else ''}"


def _hurry(found: Feasibility) -> str:
    if found.at_risk_on_hold:
        return "`cdn-pipeline queue restore` lets go what is on hold, while its URLs live."
    return "Let more runs work at once; `cdn-pipeline queue hold --priority 10` keeps re-encoding out of their way."


def _look_at_a_lost_image(overview: Overview) -> str:
    samples = overview.watch.samples
    return f"`cdn-pipeline explain {samples[0].partition(' ')[0]}` tells why one of them was late." if samples else ""


def _mend_the_most_frequent_failure(overview: Overview) -> str:
    if not overview.failures:
        return "Look at the last runs in Dagster."
    worst = overview.failures[0]
    return f"Most images fail with {worst.kind} ({worst.images}). {worst.advice or ''}".rstrip()


def _start_a_run(shard: str | None) -> str:
    return f"Look whether Dagster's daemon runs and its sensor is on; a run of shard {shard} takes the oldest."
