"""Numbers, moments and sentences as templates write them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.api.pages.words import ago, moment, number, sentence, share, size, without_signature

NOW = datetime(2026, 3, 1, 14, 5, 7, tzinfo=UTC)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_number_is_the_same_without_its_thin_spaces(value: int) -> None:
    told = number(value)
    assert int(told.replace("\u202f", "")) == value
    assert all(len(group) == 3 for group in told.split("\u202f")[1:])


@pytest.mark.parametrize(("value", "told"), [(0.99999, "99.9\u202f%"), (1.0, "100.0\u202f%"), (None, "–")])
def test_a_share_is_whole_only_if_it_is(value: float | None, told: str) -> None:
    assert share(value) == told


@pytest.mark.parametrize(("value", "told"), [(999, "999\u202fB"), (112_400, "112.4\u202fkB"), (None, "–")])
def test_bytes_are_told_in_a_unit_that_fits(value: int | None, told: str) -> None:
    assert size(value) == told


def test_a_moment_is_told_both_ways() -> None:
    then = NOW - timedelta(minutes=3)
    assert ">2026-03-01 14:02:07 UTC</time>" in moment(then, NOW)
    assert 'title="3 min ago"' in moment(then, NOW)
    assert 'title="2026-03-01 14:02:07 UTC">3 min ago</time>' in ago(then, NOW)
    assert moment(None, NOW) == "–"


def test_a_sentence_has_a_capital_letter_code_and_no_markup_of_others() -> None:
    assert sentence("look at `a <b>` first") == "Look at <code>a &lt;b&gt;</code> first."
    assert sentence("cdn-1.example is left alone.") == "cdn-1.example is left alone."


def test_a_source_url_without_its_query_is_no_more_signed() -> None:
    assert without_signature("https://user:word@cdn.example/v/a_n.jpg?oh=x&oe=y") == "https://cdn.example/v/a_n.jpg"
