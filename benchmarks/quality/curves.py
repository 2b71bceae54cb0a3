"""Bytes against quality: what one picture takes with one encoder at several settings. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Point:
    """One encoding: the encoder's quality setting, bytes, and scores by measure (more is better)."""

    setting: int
    size: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Encodings of one picture by rising setting."""

    points: Sequence[Point]

    def at(self, setting: int) -> Point:
        """The encoding of that setting, which must be one of the curve's."""
        return next(point for point in self.points if point.setting == setting)

    def reaches(self, measure: str, score: float) -> bool:
        """Whether the score lies between those of the curve's ends."""
        return self.points[0].scores[measure] <= score <= self.points[-1].scores[measure]

    def size_for(self, measure: str, score: float) -> float:
        """Bytes for that score: straight lines between score and log of bytes; beyond the ends, those of the end."""
        return math.exp(self._between(measure, score, lambda point: math.log(point.size)))

    def setting_for(self, measure: str, score: float) -> float:
        """The setting for that score, likewise."""
        return self._between(measure, score, lambda point: point.setting)

    def _between(self, measure: str, score: float, value: Callable[[Point], float]) -> float:
        if score <= self.points[0].scores[measure]:
            return value(self.points[0])
        for left, right in pairwise(self.points):
            low, high = left.scores[measure], right.scores[measure]
            if low < score <= high:
                return value(left) + (score - low) / (high - low) * (value(right) - value(left))
        return value(self.points[-1])


def lowest_setting(low: int, high: int, good_enough: Callable[[int], bool]) -> int:
    """The lowest setting from `low` to `high` that is good enough, by bisection; `high` is taken on trust."""
    while low < high:
        middle = (low + high) // 2
        if good_enough(middle):
            high = middle
        else:
            low = middle + 1
    return high
