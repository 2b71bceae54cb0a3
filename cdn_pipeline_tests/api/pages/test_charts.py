"""Bars: where they stand, and what is said of them in words."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.api.pages.charts import HEIGHT, WIDTH, charts
from cdn_pipeline.observe.history import History, _totals
from cdn_pipeline.observe.stats import HOUR, HourStats

START = datetime(2026, 3, 1, tzinfo=UTC)


def history_of(depths: dict[int, int], failed: int = 0) -> History:
    """A day, of which these hours are stored, with the depth of the queue in each."""
    hours = [
        HourStats(START.date(), hour, 100, failed, 80, 40, 20, 1, 1, {"image_corrupt": failed}, depth, 50)
        for hour, depth in sorted(depths.items())
    ]
    return History(START, START + 24 * HOUR, hours, _totals(hours), _totals([]), {})


@given(st.dictionaries(st.integers(0, 23), st.integers(0, 10**7), min_size=1))
def test_every_bar_is_within_the_chart_and_in_its_own_hour(depths: dict[int, int]) -> None:
    for chart in charts(history_of(depths)):
        assert len(chart.bars) == len(depths)
        for hour, bar in zip(sorted(depths), chart.bars, strict=True):
            assert 0 <= bar.y <= HEIGHT
            assert bar.y + bar.height <= HEIGHT + 0.02
            assert hour * WIDTH / 24 <= bar.x <= bar.x + bar.width <= (hour + 1) * WIDTH / 24 + 0.02


def test_bars_are_coloured_by_the_thresholds_of_the_checks() -> None:
    assert {bar.level for bar in charts(history_of({1: 3000}))[2].bars} == {"error"}
    assert {bar.level for bar in charts(history_of({1: 1500}))[2].bars} == {"warning"}
    assert {bar.level for bar in charts(history_of({1: 5}, failed=20))[0].bars} == {"error"}
    assert {bar.level for bar in charts(history_of({1: 5}, failed=7))[0].bars} == {"warning"}


def test_a_chart_says_in_words_what_it_shows() -> None:
    queue = charts(history_of({1: 5, 2: 2000}))[2]
    assert queue.summary == "Queue, at its deepest by hour: from 5 to 2\u202f000, in the last hour 2\u202f000."


def test_without_a_stored_hour_there_is_no_chart() -> None:
    assert charts(history_of({})) == ()
