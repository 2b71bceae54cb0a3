from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.observe.shares import in_percent, percent


@given(part=st.integers(0, 100_000), whole=st.integers(1, 100_000))
def test_percentages_are_rounded_down_exactly(part: int, whole: int) -> None:
    part = min(part, whole)
    assert percent(part / whole) == 1000 * part // whole / 10


def test_nothing_looks_whole_that_is_not() -> None:
    assert [in_percent(share) for share in (1.0, 0.99999, 0.5, 0.0)] == ["100.0%", "99.9%", "50.0%", "0.0%"]
