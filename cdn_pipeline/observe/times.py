"""Moments and spans as a person says them, in UTC."""

from datetime import UTC, datetime, timedelta

DAY = timedelta(days=1)
MONTH = timedelta(days=30)  # that figures of a month are of

# (seconds of the unit, its sign); a span is told in the largest unit of which it has at least two.
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def span(length: timedelta) -> str:
    """`3 h`, `45 s`: rounded down, without sign."""
    seconds = abs(int(length.total_seconds()))
    size, sign = next((unit for unit in _UNITS if seconds >= 2 * unit[0]), _UNITS[-1])
    return f"{seconds // size} {sign}"


def distance(moment: datetime, now: datetime) -> str:
    """`3 h ago` or `in 3 h`."""
    return f"in {span(moment - now)}" if moment > now else f"{span(now - moment)} ago"


def clock(moment: datetime) -> str:
    """`2026-03-01 14:05:07 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def at(moment: datetime, now: datetime) -> str:
    """`2026-03-01 14:05:07 UTC (3 h ago)`."""
    return f"{clock(moment)} ({distance(moment, now)})"
