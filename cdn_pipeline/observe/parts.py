"""Vitals, judged part by part: how each is, in words, and of what is not well what to do first."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.health import Health, Judged, PartName, judge
from cdn_pipeline.observe.thresholds import (
    Judgement,
    judge_cache_hits,
    judge_disk,
    judge_first_bytes,
    judge_heartbeat,
    judge_probes,
    judge_round_trip,
    judge_urls,
    judge_workers,
)
from cdn_pipeline.observe.vitals import RoundTrip, Vitals

RUNBOOK = "docs/runbook.md"

_INFORMS = frozenset({PartName.CACHE})

# Judged from the catalog's rows: nothing is known of them while it is away.
_FROM_THE_CATALOG = (PartName.QUEUE, PartName.WORKERS, PartName.PIPELINE, PartName.HOSTS, PartName.SOURCES)

# The parts that cannot be told well without a measurement.
_TOLD_OF: Mapping[str, Sequence[PartName]] = {
    "overview": (PartName.QUEUE, PartName.PIPELINE, PartName.HOSTS, PartName.SOURCES),
    "workers": (PartName.WORKERS,),
    "figures": (PartName.PIPELINE,),
    "storage": (PartName.PIPELINE,),
    "delivery": (PartName.DELIVERY,),
    "traffic": (PartName.CACHE,),
}


@dataclass(frozen=True, slots=True)
class Part:
    """How one part is. `first` is what to do first, empty if it is well; `section` is a heading of the runbook.

    A part that only informs does not count for the health of the whole.
    """

    name: PartName
    health: Health
    words: str
    first: str
    section: str

    @property
    def informs(self) -> bool:
        """Whether it is told but not counted."""
        return self.name in _INFORMS


def parts(vitals: Vitals) -> tuple[Part, ...]:
    """Every part, in the order of `PartName`; one that cannot be measured just now is not well."""
    judged: defaultdict[PartName, list[Judged]] = defaultdict(list)
    for each in _judge(vitals):
        judged[each.part].append(each)
    return tuple(_part(name, judged[name]) for name in PartName if judged[name])


def whole(found: Sequence[Part]) -> Health:
    """The worst health of those that count."""
    return min((part.health for part in found if not part.informs), key=lambda health: health.rank)


def _part(name: PartName, judged: Sequence[Judged]) -> Part:
    worst = min(judged, key=lambda each: each.health.rank)
    told = [each for each in judged if not each.judgement.passed] or judged
    return Part(
        name,
        worst.health,
        "; ".join(dict.fromkeys(each.judgement.words for each in told)),  # one cause may spoil several numbers
        "" if worst.judgement.passed else worst.first,
        worst.section,
    )


def _judge(vitals: Vitals) -> Iterator[Judged]:
    yield _round_trip(PartName.CATALOG, vitals.catalog, FailureKind.CATALOG_UNAVAILABLE)
    yield _round_trip(PartName.OBJECTS, vitals.objects, FailureKind.STORE_UNAVAILABLE)
    yield _round_trip(PartName.ORIGINALS, vitals.originals, FailureKind.STORE_UNAVAILABLE)
    yield from judge(vitals.overview) if vitals.overview else ()
    yield from _workers(vitals)
    yield from _unknown(vitals)
    yield from _unmeasurable(vitals)
    yield from _delivery(vitals)
    hits = judge_cache_hits(vitals.traffic.hit_ratio if vitals.traffic else None)
    yield Judged(PartName.CACHE, hits, "Look which URLs miss in Cloudflare's cache analytics.", "alerts")
    if vitals.disk:
        words = f"Make room on the disk of {vitals.disk.folder}; `cdn-pipeline clean-up` tells what nobody needs."
        yield Judged(PartName.DISK, judge_disk(vitals.disk.used_share), words, "disk_full")


def _round_trip(part: PartName, asked: RoundTrip, kind: FailureKind) -> Judged:
    return Judged(part, judge_round_trip(asked.milliseconds, asked.problem), kind.advice, "failure-kinds")


def _workers(vitals: Vitals) -> Iterator[Judged]:
    start = "Look whether Dagster's daemon runs, its sensor is on, and why the last runs ended."
    if vitals.workers:
        found = judge_workers(vitals.workers.leases, vitals.workers.due, vitals.workers.idle_for)
        yield Judged(PartName.WORKERS, found, start, "what-runs-by-itself")
    if vitals.catalog.answered:
        heard = judge_heartbeat(vitals.heartbeat_age)
        yield Judged(PartName.WORKERS, heard, "Start Dagster's daemon again; what is due waits.", "what-runs-by-itself")


def _delivery(vitals: Vitals) -> Iterator[Judged]:
    found, age = vitals.delivery, vitals.probes_age
    if found is None or age is None:
        return
    section = "delivery-broken-or-slow-urls"
    probed = judge_probes(age)
    if not probed.passed:
        again = "Look whether `probe_delivery` runs every hour, and whether its schedule is on."
        yield Judged(PartName.DELIVERY, probed, again, section)
        return
    look = "Open one of the URLs; `cdn-pipeline verify` says whether its object is there and whole."
    yield Judged(PartName.DELIVERY, judge_urls(found.n, found.broken), look, section)
    slow = "Look whether they are HIT or MISS, and how the CDN's own route is doing."
    yield Judged(PartName.DELIVERY, judge_first_bytes(found.share_in_time, found.n), slow, section)


def _unknown(vitals: Vitals) -> Iterator[Judged]:
    """What is not known: the catalog is away, or takes too long."""
    for name in _FROM_THE_CATALOG:
        measured = "workers" if name is PartName.WORKERS else "overview"
        if getattr(vitals, measured) is None and not (vitals.catalog.answered and measured in vitals.unmeasurable):
            away = not vitals.catalog.answered
            words = "not known while the catalog is away" if away else "not measured yet: the catalog takes long"
            first = FailureKind.CATALOG_UNAVAILABLE.advice if away else "Ask again in a minute."
            yield Judged(name, Judgement(False, away, words), first, "failure-kinds")


def _unmeasurable(vitals: Vitals) -> Iterator[Judged]:
    """What is not known because of an error of ours. Round trips say so themselves."""
    report = "The log has the traceback: is the schema this version's (`cdn-pipeline migrate`)? Otherwise report it."
    for measurement, words in vitals.unmeasurable.items():
        for name in _TOLD_OF.get(measurement, ()):
            yield Judged(name, Judgement(False, False, words), report, "cannot_be_measured")
