"""Plots are well-formed SVG, whatever the values are."""

import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.observe.comparison_figures import percentiles_of
from cdn_pipeline.observe.plots import Series, cumulative_plot

_VALUES = st.lists(st.floats(0, 1e6), max_size=50).map(sorted)


@given(st.lists(st.builds(Series, st.text(st.characters(exclude_categories=["Cc", "Cs"])), _VALUES), max_size=5))
def test_every_series_with_values_is_a_curve_within_the_picture(series: list[Series]) -> None:
    drawn = [each for each in series if each.values]
    plot = cumulative_plot(series, title="<Milliseconds> & shares", unit="ms")
    if not drawn:
        assert plot == ""
        return
    svg = ET.fromstring(plot)
    names = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")][-len(drawn) :]
    assert svg.get("aria-label") == "<Milliseconds> & shares"
    assert len(names) == len(drawn)
    _, _, width, height = map(float, (svg.get("viewBox") or "").split())
    for path in svg.iter("{http://www.w3.org/2000/svg}path"):
        for command in (path.get("d") or "").replace("H", " H").replace("V", " V").replace("M", " M").split():
            if command[0] == "H":
                assert 0 <= float(command[1:]) <= width
            elif command[0] == "V":
                assert 0 <= float(command[1:]) <= height


def test_a_curve_of_many_values_has_few_points_and_ends_at_all_of_them() -> None:
    plot = cumulative_plot([Series("many", [float(number) for number in range(1, 10_001)])], title="t", unit="ms")
    assert plot.count("H") < 1000
    assert 'V16.0"' in plot  # the last step is at 100 %, the upper margin


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted))
def test_percentiles_are_values_and_at_least_that_share_is_not_above_them(values: list[float]) -> None:
    found = percentiles_of(values)
    assert found
    assert found.n == len(values)
    for share, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        assert value in values
        assert sum(each <= value for each in values) >= share * len(values)
        assert sum(each < value for each in values) < share * len(values)


def test_nothing_has_no_percentiles() -> None:
    assert percentiles_of([]) is None
