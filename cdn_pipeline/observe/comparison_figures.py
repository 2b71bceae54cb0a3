"""What a comparison of CDN and sources has found, in figures: each with the number of pictures that it is of."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from cdn_pipeline.observe.comparison import Asked, Compared, Outcome, Sample
from cdn_pipeline.observe.probes import Percentiles


@dataclass(frozen=True, slots=True)
class Side:
    """The CDN, or the sources: outcomes of all pictures, and milliseconds to the first byte of the available ones."""

    name: str
    outcomes: Mapping[Outcome, int]
    cold_ms: Sequence[float]
    warm_ms: Sequence[float]

    @property
    def judged(self) -> int:
        """Pictures of which it is known whether they can be had."""
        return sum(count for outcome, count in self.outcomes.items() if outcome is not Outcome.NOT_ASKED)

    @property
    def is_silent(self) -> bool:
        """Whether it was asked and nothing came back at all: whoever should answer is not there."""
        answered = self.outcomes.get(Outcome.AVAILABLE, 0) + self.outcomes.get(Outcome.BROKEN, 0)
        return not answered and self.outcomes.get(Outcome.NO_ANSWER, 0) > 0

    @property
    def availability(self) -> float | None:
        """0 to 1, of the judged ones; None without any."""
        return self.outcomes.get(Outcome.AVAILABLE, 0) / self.judged if self.judged else None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes per picture of `n` pictures."""

    name: str
    n: int
    mean: float
    median: float


@dataclass(frozen=True, slots=True)
class Figures:
    """`asked` pictures of the `published` ones; `sizes` are of the originals first, then of each rendition."""

    drawn_at: datetime
    published: int
    drawn: int
    asked: int
    cdn: Side
    legacy: Side
    sizes: Sequence[Sizes]


def figures_of(sample: Sample, compared: Sequence[Compared], size_names: Sequence[str]) -> Figures:
    """Sums up what was asked; `size_names` are the recipe's, the largest first."""
    return Figures(
        sample.drawn_at,
        sample.published,
        len(sample.pairs),
        len(compared),
        _side("CDN", [each.cdn for each in compared]),
        _side("legacy", [each.legacy for each in compared]),
        [each for each in _sizes(sample, size_names) if each.n],
    )


def _side(name: str, asked: Sequence[Asked]) -> Side:
    return Side(
        name,
        Counter(each.outcome for each in asked),
        sorted(each.cold_ms for each in asked if each.cold_ms is not None),
        sorted(each.warm_ms for each in asked if each.warm_ms is not None),
    )


def _sizes(sample: Sample, size_names: Sequence[str]) -> Sequence[Sizes]:
    originals = [pair.original_size for pair in sample.pairs if pair.original_size is not None]
    renditions = [
        (name, [pair.rendition_sizes[number] for pair in sample.pairs if number < len(pair.rendition_sizes)])
        for number, name in enumerate(size_names)
    ]
    return [
        Sizes(name, len(sizes), sum(sizes) / len(sizes) if sizes else 0.0, median(sizes) if sizes else 0.0)
        for name, sizes in [("original", originals), *renditions]
    ]


def percentiles_of(milliseconds: Sequence[float]) -> Percentiles | None:
    """Nearest-rank percentiles of sorted values; None without any."""
    count = len(milliseconds)
    if not count:
        return None
    p50, p95, p99 = (milliseconds[math.ceil(share * count) - 1] for share in (0.5, 0.95, 0.99))
    return Percentiles(count, p50, p95, p99)
