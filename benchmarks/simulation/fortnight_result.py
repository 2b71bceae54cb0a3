"""What came of the simulated fortnight, in numbers and as a table."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from benchmarks.simulation.daemon import FailedCheck, Record
from benchmarks.simulation.history import Comparison
from cdn_pipeline.demo.proof import CatalogState

_ONE_EPISODE = timedelta(hours=2)  # standing checks run every hour


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    days: float
    record: Record
    state: CatalogState
    requests: Mapping[str, int]  # at the origin, by outcome
    profiles: int
    arrived_dead: int
    healed: int
    replaced: int
    waits: Sequence[timedelta]  # from the insert of a row to its picture's first URL, in order
    taken_over: int  # jobs of the killed run
    comparison: Comparison

    @property
    def red_hours(self) -> int:
        """How often the check said that images were lost on our watch."""
        return sum(check.name == "no_image_lost_on_our_watch" for check in self.record.failed_checks)

    @property
    def holds(self) -> bool:
        """Nothing lost, every hour counted and exact, no run broken."""
        comparison = self.comparison
        return not (
            self.state.lost or self.red_hours or comparison.missing or comparison.differences or self.record.broken
        )

    def table(self) -> Iterator[str]:
        """The result as a Markdown table, and what went wrong below it."""
        yield "| the simulated fortnight | |\n|---|---|"
        yield from (f"| {name} | {value} |" for name, value in self._rows())
        comparison = self.comparison
        yield from (f"hour without statistics: {hour:%Y-%m-%d %H:%M}" for hour in comparison.missing)
        yield from (f"differs: {difference}" for difference in comparison.differences)
        yield from (f"broken run: {words}" for words in self.record.broken)
        yield from (_episode(checks) for checks in _episodes(self.record.failed_checks))

    def _rows(self) -> Iterator[tuple[str, object]]:
        record, state, comparison = self.record, self.state, self.comparison
        yield "simulated days, sensor ticks", f"{self.days:g}, {record.looks:,}"
        yield (
            "runs (failed)",
            _listed({name: f"{runs} ({record.failed_runs[name]})" for name, runs in record.runs.items()}),
        )
        yield "runs broken other than by a check", len(record.broken)
        yield "profiles, images, published", f"{self.profiles}, {state.images:,}, {state.published:,}"
        yield "images not published, by kind", _listed(state.unpublished)
        yield "requests at the origin", _listed(self.requests)
        yield "avatars replaced", self.replaced
        yield "from a row's insert to its URL, minutes: median, 95 %, worst", _quantiles(self.waits)
        yield "jobs in hand of the killed run, taken over", self.taken_over
        yield "**images lost on our watch**", f"**{self.state.lost}**"
        yield "hours whose check said that some were", self.red_hours
        yield "posts that arrived dead, healed since", f"{self.arrived_dead}, {self.healed}"
        yield "jobs ended, by the independent count", f"{comparison.jobs:,}"
        yield (
            "hours compared, differing, without statistics",
            f"{comparison.hours}, {len(comparison.differences)}, {len(comparison.missing)}",
        )
        yield "checks that did not pass", _listed(Counter(check.name for check in record.failed_checks))


def _episodes(checks: Iterable[FailedCheck]) -> Iterator[list[FailedCheck]]:
    """The same check, hour after hour."""
    for _, same in groupby(sorted(checks, key=lambda check: check.name), key=lambda check: check.name):
        episode: list[FailedCheck] = []
        for check in same:
            if episode and check.moment - episode[-1].moment > _ONE_EPISODE:
                yield episode
                episode = []
            episode.append(check)
        yield episode


def _episode(checks: Sequence[FailedCheck]) -> str:
    first, last = checks[0], checks[-1]
    when = f"{first.moment:%Y-%m-%d %H:%M} to {last.moment:%Y-%m-%d %H:%M}, {len(checks)} times"
    return f"{first.name} ({first.severity}), {when}; at first: {first.words}"


def _listed(numbers: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(numbers.items())) or "none"


def _quantiles(waits: Sequence[timedelta]) -> str:
    if not waits:
        return "none"
    picks = (waits[len(waits) // 2], waits[len(waits) * 95 // 100], waits[-1])
    return ", ".join(f"{pick / timedelta(minutes=1):.0f}" for pick in picks)
