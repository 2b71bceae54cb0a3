import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.fetch.concurrency import FIRST_LIMIT, MOST_AT_ONCE, Concurrency


def fill(concurrency: Concurrency) -> list[int]:
    """Begins as many downloads as there is room for."""
    begun = []
    while concurrency.has_room:
        begun.append(concurrency.begin())
    return begun


def test_a_round_of_answers_at_the_limit_allows_one_more() -> None:
    concurrency = Concurrency()
    assert len(fill(concurrency)) == FIRST_LIMIT
    for _ in range(int(FIRST_LIMIT) + 1):  # a little more than a round: the limit grows while it goes on
        concurrency.answered()
        concurrency.end()
        concurrency.begin()
    assert int(concurrency.limit) == FIRST_LIMIT + 1


def test_a_limit_that_holds_nobody_up_stays() -> None:
    concurrency = Concurrency()
    for _ in range(1000):
        concurrency.begin()
        concurrency.answered()
        concurrency.end()
    assert concurrency.limit == FIRST_LIMIT


def test_downloads_that_fail_together_halve_the_limit_once() -> None:
    concurrency = Concurrency()
    for begun in fill(concurrency):
        concurrency.failed(begun)
        concurrency.end()
    assert concurrency.limit == FIRST_LIMIT / 2
    concurrency.failed(concurrency.begin())
    assert concurrency.limit == FIRST_LIMIT / 4


@given(st.lists(st.sampled_from(["begin", "answer", "fail"]), max_size=400))
def test_whatever_happens_at_least_one_download_may_go_and_never_more_than_the_most(steps: list[str]) -> None:
    concurrency, in_work = Concurrency(), list[int]()
    for step in steps:
        if step == "begin" and concurrency.has_room:
            in_work.append(concurrency.begin())
        elif in_work:
            begun = in_work.pop(0)
            concurrency.answered() if step == "answer" else concurrency.failed(begun)
            concurrency.end()
        assert 1 <= concurrency.limit <= MOST_AT_ONCE
        assert concurrency.in_work == len(in_work) <= MOST_AT_ONCE
    assert in_work or concurrency.has_room


def test_a_host_that_never_holds_up_finds_the_most_by_itself() -> None:
    concurrency = Concurrency()
    for _ in range(5000):
        fill(concurrency)
        concurrency.answered()
        concurrency.end()
    assert concurrency.limit == pytest.approx(MOST_AT_ONCE)
