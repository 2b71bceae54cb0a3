from datetime import UTC, datetime, timedelta, timezone

import pytest

from cdn_pipeline.observe.times import at, clock, distance, span

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=119), "119 s"),
        (timedelta(seconds=120), "2 min"),
        (timedelta(minutes=119, seconds=59), "119 min"),
        (timedelta(hours=2), "2 h"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=2), "2 d"),
        (timedelta(days=-400), "400 d"),
    ],
)
def test_a_span_is_told_in_the_largest_unit_of_which_it_has_two(length: timedelta, words: str) -> None:
    assert span(length) == words


def test_the_past_and_the_future_are_told_apart() -> None:
    assert distance(NOON - timedelta(hours=3), NOON) == "3 h ago"
    assert distance(NOON + timedelta(hours=3), NOON) == "in 3 h"
    assert distance(NOON, NOON) == "0 s ago"


def test_moments_are_told_in_utc() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert clock(moment) == "2026-03-01 10:00:00 UTC"
    assert at(moment, NOON) == "2026-03-01 10:00:00 UTC (2 h ago)"
