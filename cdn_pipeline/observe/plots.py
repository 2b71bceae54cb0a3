"""Plots as SVG that stands inside a document: no script, no file beside it, readable on light and on dark."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 16, 44  # margins; the legend stands on the right
_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00")  # Okabe and Ito's: told apart by colour-blind readers as well
_INK = "#808080"  # 3.9:1 on white, 5.3:1 on black
_MOST_POINTS = 400  # of one curve; more would not be seen


@dataclass(frozen=True, slots=True)
class Series:
    """A curve: its name, and sorted positive values."""

    name: str
    values: Sequence[float]


def cumulative_plot(series: Sequence[Series], *, title: str, unit: str) -> str:
    """For each series which share of its values is at most x, on a logarithmic axis; empty ones are left out."""
    drawn = [each for each in series if each.values]
    if not drawn:
        return ""
    axis = _LogAxis.around([value for each in drawn for value in each.values])
    parts = [*_grid(axis, unit)]
    for number, each in enumerate(drawn):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = ' stroke-dasharray="6 4"' if number % 2 else ""
        parts.append(f'<path d="{_steps(each.values, axis)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(_legend(number, f"{each.name} (n={len(each.values):,})", colour, dash))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12" fill="{_INK}">\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>"
    )


@dataclass(frozen=True, slots=True)
class _LogAxis:
    """Whole decades around the values."""

    first: int
    last: int

    @classmethod
    def around(cls, values: Sequence[float]) -> "_LogAxis":
        least, most = (math.log10(max(value, 1e-3)) for value in (min(values), max(values)))
        first = math.floor(least)
        return cls(first, max(math.ceil(most), first + 1))

    def place(self, value: float) -> float:
        share = (math.log10(max(value, 1e-3)) - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _height_of(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid(axis: _LogAxis, unit: str) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _height_of(share)
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{_INK}" stroke-opacity=".35"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    for decade in range(axis.first, axis.last + 1):
        x = axis.place(10.0**decade)
        yield f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="{_INK}" stroke-opacity=".35"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{10.0**decade:g}</text>'
    yield f'<text x="{(_LEFT + right) / 2:.1f}" y="{bottom + 36}" text-anchor="middle">{escape(unit)}</text>'


def _steps(values: Sequence[float], axis: _LogAxis) -> str:
    """A path of steps: up by a share at every value, or at every so-manieth of many."""
    count = len(values)
    every = max(count // _MOST_POINTS, 1)
    ranks = [*range(0, count, every), *([count - 1] if (count - 1) % every else [])]
    points = "".join(f"H{axis.place(values[rank]):.1f}V{_height_of((rank + 1) / count):.1f}" for rank in ranks)
    return f"M{axis.place(values[0]):.1f} {_height_of(0):.1f}{points}"


def _legend(number: int, words: str, colour: str, dash: str) -> str:
    x, y = _WIDTH - _RIGHT + 10, _TOP + 14 + 20 * number
    line = f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="2"{dash}/>'
    return f'{line}<text x="{x + 24}" y="{y}">{escape(words)}</text>'
