"""How healthy the whole is: every number of the overview judged, and of each that is not well what to do first."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cdn_pipeline.collections import BACKFILL_PRIORITY
from cdn_pipeline.observe.feasibility import Feasibility
from cdn_pipeline.observe.overview import Overview
from cdn_pipeline.observe.thresholds import (
    Judgement,
    judge_breakers,
    judge_deadlines,
    judge_health,
    judge_lost,
    judge_oldest_due,
    judge_queue_depth,
    judge_scans,
)


class Health(StrEnum):
    """The state of the whole; declared from the worst to the best."""

    UNHEALTHY = "unhealthy"
    DEGRADED = "degraded"
    HEALTHY = "healthy"


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
        Finding(Health.UNHEALTHY if judgement.is_error else Health.DEGRADED, judgement.words, first)
        for judgement, first in _judgements(overview)
        if not judgement.passed
    ]
    findings = tuple(sorted(found, key=lambda finding: list(Health).index(finding.health)))
    health = findings[0].health if findings else Health.HEALTHY
    return CheckUp(health, "; ".join(finding.words for finding in findings) or _all_is_well(overview), findings)


def _all_is_well(overview: Overview) -> str:
    if not overview.images.total:
        return "no image is known yet; a run of `publish_images` reads the source rows"
    queue = sum(line.depth for line in overview.queue)
    work = f"{queue} in the queue" if queue else "nothing left to do"
    return f"{overview.images.published_share:.1%} of {overview.images.total} images are published, {work}"


def _judgements(overview: Overview) -> Iterator[tuple[Judgement, str]]:
    """Every number that is judged, with what to do first if it is not well. The gravest come first."""
    yield judge_lost(overview.watch.lost, overview.watch.lost_lately), _look_at_a_lost_image(overview)
    last_day = overview.last_day
    yield judge_health(last_day.completed, last_day.failed), _mend_the_most_frequent_failure(overview)
    yield judge_oldest_due(overview.oldest_due.age), _start_a_run(overview.oldest_due.shard)
    urgent = sum(line.depth for line in overview.queue if line.priority < BACKFILL_PRIORITY)
    yield judge_queue_depth(urgent), "Look whether runs are working; if they are, let more of them work at once."
    yield judge_breakers([host.open_for for host in overview.shut_hosts]), _look_at_the_host(overview)
    yield judge_deadlines(overview.feasibility.at_risk, overview.feasibility.words), _hurry(overview.feasibility)
    yield (
        judge_scans(overview.scans.begun, len(overview.scans.stale)),
        "Look whether `nightly_freshness` ran last night, and whether its schedule is on.",
    )


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
    return f"Most images fail with {worst.kind} ({worst.images}). {worst.advice}"


def _start_a_run(shard: str | None) -> str:
    return f"Look whether Dagster's daemon runs and its sensor is on; a run of shard {shard} takes the oldest."
