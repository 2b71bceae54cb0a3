"""Hours as bars: the geometry of the overview's charts, in the units of their `viewBox`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cdn_pipeline.api.pages.words import number, share
from cdn_pipeline.observe.history import History
from cdn_pipeline.observe.stats import HOUR, HourStats
from cdn_pipeline.observe.thresholds import QUEUE_DEPTH_ERROR, QUEUE_DEPTH_WARNING, SUCCESS_RATE_ERROR
from cdn_pipeline.observe.thresholds import SUCCESS_RATE_WARNING as SUCCESS_WARNING

WIDTH, HEIGHT = 480, 96
_LEAST = 2  # a bar of nothing is still seen


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour. `level` is good, warning or error."""

    x: float
    y: float
    width: float
    height: float
    level: str
    words: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure over hours; hours that are not stored have no bar. `summary` says in words what the bars show."""

    title: str
    latest: str
    top: str  # what the upper edge stands for
    bars: Sequence[Bar]
    summary: str


def charts(history: History) -> Sequence[Chart]:
    """Success, throughput and the queue's peak; empty without a stored hour."""
    if not history.hours:
        return ()
    return (
        _chart(history, "Success rate", lambda hour: hour.success_rate, share, _success_level, most=1.0),
        _chart(history, "Jobs per hour", lambda hour: hour.jobs_processed, number, lambda _: "good"),
        _chart(history, "Queue, at its deepest", lambda hour: hour.peak_queue_depth, number, _depth_level),
    )


def _success_level(rate: float) -> str:
    return "error" if rate < SUCCESS_RATE_ERROR else "warning" if rate < SUCCESS_WARNING else "good"


def _depth_level(depth: float) -> str:
    return "error" if depth > QUEUE_DEPTH_ERROR else "warning" if depth > QUEUE_DEPTH_WARNING else "good"


def _chart(
    history: History,
    title: str,
    value_of: Callable[[HourStats], float | None],
    say: Callable[[float | None], str],
    level: Callable[[float], str],
    most: float | None = None,
) -> Chart:
    told = [(hour.start, value) for hour in history.hours if (value := value_of(hour)) is not None]
    values = [value for _, value in told]
    top = most or max(values, default=0) or 1
    slot = WIDTH / max(1, round((history.end - history.start) / HOUR))
    bars = [_bar(history.start, start, value / top, slot, level(value), say(value)) for start, value in told]
    latest = say(values[-1] if values else None)
    summary = "nothing was measured"
    if values:
        summary = f"from {say(min(values))} to {say(max(values))}, in the last hour {latest}"
    return Chart(title, latest, say(top), bars, f"{title} by hour: {summary}.")


def _bar(begin: datetime, start: datetime, part: float, slot: float, level: str, words: str) -> Bar:
    height = max(_LEAST, part * HEIGHT)
    x = (start - begin) / HOUR * slot
    return Bar(
        x=round(x + slot * 0.1, 2),
        y=round(HEIGHT - height, 2),
        width=round(slot * 0.8, 2),
        height=round(height, 2),
        level=level,
        words=f"{start:%d %b %H:%M} UTC: {words}",
    )
