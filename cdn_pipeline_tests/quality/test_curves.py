import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality.curves import Curve, Point, lowest_setting

CURVE = Curve([Point(70, 1_000, {"SSIM": 0.90}), Point(80, 4_000, {"SSIM": 0.94}), Point(90, 8_000, {"SSIM": 0.98})])


def test_a_curve_passes_through_its_points() -> None:
    for point in CURVE.points:
        assert CURVE.size_for("SSIM", point.scores["SSIM"]) == pytest.approx(point.size)
        assert CURVE.setting_for("SSIM", point.scores["SSIM"]) == pytest.approx(point.setting)


def test_halfway_to_a_score_bytes_are_the_geometric_mean() -> None:
    assert CURVE.size_for("SSIM", 0.92) == pytest.approx(2_000)
    assert CURVE.setting_for("SSIM", 0.92) == pytest.approx(75)


def test_beyond_its_ends_a_curve_gives_what_the_end_takes_and_says_that_it_does_not_reach() -> None:
    assert (CURVE.size_for("SSIM", 0.5), CURVE.size_for("SSIM", 0.999)) == pytest.approx((1_000, 8_000))
    assert [CURVE.reaches("SSIM", score) for score in (0.5, 0.9, 0.98, 0.999)] == [False, True, True, False]


@given(st.floats(0.90, 0.98), st.floats(0.90, 0.98))
def test_a_better_score_never_takes_fewer_bytes(one: float, other: float) -> None:
    worse, better = sorted((one, other))
    assert CURVE.size_for("SSIM", worse) <= CURVE.size_for("SSIM", better)


def test_a_curve_whose_score_falls_on_the_way_is_crossed_where_the_score_is_first_reached() -> None:
    dented = Curve(
        [Point(70, 1_000, {"SSIM": 0.90}), Point(80, 2_000, {"SSIM": 0.89}), Point(90, 4_000, {"SSIM": 0.99})]
    )
    assert dented.setting_for("SSIM", 0.94) == pytest.approx(85)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_the_search_finds_the_lowest_setting_that_is_good_enough(one: int, other: int, needed: int) -> None:
    low, high = sorted((one, other))
    tried: list[int] = []

    def good_enough(setting: int) -> bool:
        tried.append(setting)
        return setting >= needed

    assert lowest_setting(low, high, good_enough) == min(max(low, needed), high)
    assert len(tried) <= (high - low).bit_length()
