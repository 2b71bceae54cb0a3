"""Shares of a whole, as people read them: rounded down, so that nothing looks whole that is not."""

import math
from typing import overload


@overload
def percent(share: float) -> float: ...
@overload
def percent(share: float | None) -> float | None: ...
def percent(share: float | None) -> float | None:
    """0 to 1 as 0 to 100, with one decimal."""
    if share is None:
        return None
    return math.floor(round(1000 * share, 9)) / 10  # 1000 * 0.57 is a little less than 570


def in_percent(share: float) -> str:
    """0 to 1 as `99.2%`."""
    return f"{percent(share):.1f}%"
