"""Quality by a perceptual target: one score for all renditions, each at its own setting, instead of one setting."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality.curves import lowest_setting
from benchmarks.quality.encoders import METHOD_4, PRESENT
from benchmarks.quality.encoding import DECIDING, Rendition, decoded
from benchmarks.quality.measures import ssim, ssimulacra2
from benchmarks.quality.timing import timed
from benchmarks.report import Figure

_LOWEST, _HIGHEST = 60, 95  # where a search for the quality setting looks


@dataclass(frozen=True, slots=True)
class _Found:
    """What a search came to; CPU in seconds."""

    setting: int
    data: bytes
    encodings: int
    seconds: float


def ideal_figures(renditions: Sequence[Rendition]) -> list[Figure]:
    """The most that could be gained: the mean score of the fixed quality for all, read off the curves."""
    targets = _targets(renditions, DECIDING)
    sizes = [each.curves[PRESENT.name].size_for(DECIDING, targets[each.size]) for each in renditions]
    fixed = [each.present.scores[DECIDING] for each in renditions]
    return [
        Figure(f"equal {DECIDING} for all, without its cost: bytes", (_sum_ratio(sizes, renditions),), decimals=3),
        Figure(f"fixed quality: {DECIDING} of the renditions", tuple(fixed), decimals=1),
    ]


def search_figures(renditions: Sequence[Rendition]) -> list[Figure]:
    """A search that a recipe could make: bisection by SSIM with method 4, then the recipe's own method."""
    targets = _targets(renditions, "SSIM")
    found = [_search(each, targets[each.size]) for each in renditions]
    scores = [ssimulacra2(each.pixels, decoded(one.data)) for each, one in zip(renditions, found, strict=True)]
    present = sum(timed(PRESENT.encode, each.pixels, each.present.setting)[1] for each in renditions)
    return [
        Figure("search to equal SSIM: bytes", (_sum_ratio([len(one.data) for one in found], renditions),), decimals=3),
        Figure("search to equal SSIM: quality settings", tuple(one.setting for one in found), decimals=0),
        Figure("search to equal SSIM: encodings", tuple(one.encodings for one in found), decimals=0),
        Figure("search to equal SSIM: CPU of encoding", (sum(one.seconds for one in found) / present,)),
        Figure(f"search to equal SSIM: {DECIDING} of the renditions", tuple(scores), decimals=1),
    ]


def _targets(renditions: Sequence[Rendition], measure: str) -> dict[str, float]:
    """The mean score of the present recipe, by size."""
    scores: dict[str, list[float]] = {}
    for each in renditions:
        scores.setdefault(each.size, []).append(each.present.scores[measure])
    return {size: statistics.fmean(values) for size, values in scores.items()}


def _search(rendition: Rendition, target: float) -> _Found:
    encodings, seconds = 0, 0.0

    def good_enough(setting: int) -> bool:
        nonlocal encodings, seconds
        reached, spent = timed(_ssim_at, rendition, setting)
        encodings, seconds = encodings + 1, seconds + spent
        return reached >= target

    setting = lowest_setting(_LOWEST, _HIGHEST, good_enough)
    data, spent = timed(PRESENT.encode, rendition.pixels, setting)
    return _Found(setting, data, encodings + 1, seconds + spent)


def _ssim_at(rendition: Rendition, setting: int) -> float:
    return ssim(rendition.pixels, decoded(METHOD_4.encode(rendition.pixels, setting)))


def _sum_ratio(sizes: Sequence[float], renditions: Sequence[Rendition]) -> float:
    return sum(sizes) / sum(each.present.size for each in renditions)
