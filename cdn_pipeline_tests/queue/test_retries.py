from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind, ImageFailure, Remedy
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.retries import decide, longest_wait_in_run

POLICY = INSTAGRAM.retry
TRANSIENT = [kind for kind in FailureKind if kind.remedy is Remedy.TRANSIENT and kind is not FailureKind.WORKER_DIED]

LADDER = [
    timedelta(seconds=5),
    timedelta(seconds=10),
    timedelta(seconds=20),
    timedelta(minutes=15),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=1),
]

failed_before = st.sampled_from([None, *FailureKind])


@given(st.integers(0, 1000), failed_before, st.sampled_from(TRANSIENT))
def test_a_transient_failure_is_tried_again_later_and_later(
    retries: int, before: FailureKind | None, kind: FailureKind
) -> None:
    decision = decide(POLICY, ImageFailure(kind), retries, before)
    assert (decision.verdict, decision.kind) == (Verdict.RETRYING, kind)
    step = LADDER[min(retries, len(LADDER) - 1)]
    assert step * 0.8 <= decision.retry_in <= step * 1.2


@given(st.integers(0, 20), failed_before)
def test_a_picture_that_kills_its_worker_is_tried_again_until_the_ladder_ends(
    retries: int, before: FailureKind | None
) -> None:
    decision = decide(POLICY, ImageFailure(FailureKind.WORKER_DIED), retries, before)
    over = before is FailureKind.WORKER_DIED and retries >= 7
    assert decision.verdict is (Verdict.FAILED if over else Verdict.RETRYING)
    assert decision.kind is FailureKind.WORKER_DIED


@given(st.integers(0, 10), st.floats(60, 86_400), st.floats(0, 86_400))
def test_retry_after_never_takes_more_than_half_of_the_time_that_a_url_lives(
    retries: int, lives: float, seconds: float
) -> None:
    failure = ImageFailure(FailureKind.RATE_LIMITED, retry_after_seconds=seconds)
    decision = decide(POLICY, failure, retries, None, url_lives=timedelta(seconds=lives))
    assert decision.verdict is Verdict.RETRYING
    assert decision.retry_in <= max(timedelta(seconds=lives) / 2, LADDER[min(retries, 7)] * 1.2)
    assert decision.retry_in >= min(timedelta(seconds=seconds), timedelta(seconds=lives) / 2)


def test_delays_are_spread() -> None:
    failure = ImageFailure(FailureKind.SOURCE_ERROR)
    assert len({decide(POLICY, failure, 0, None).retry_in for _ in range(20)}) > 10


@given(st.integers(0, 10), st.floats(0, 86_400))
def test_retry_after_is_obeyed_when_it_is_longer_than_the_ladder(retries: int, seconds: float) -> None:
    failure = ImageFailure(FailureKind.RATE_LIMITED, retry_after_seconds=seconds)
    wait = decide(POLICY, failure, retries, None).retry_in
    assert wait >= timedelta(seconds=seconds)
    assert wait == timedelta(seconds=seconds) or wait <= LADDER[min(retries, 7)] * 1.2


@given(st.integers(0, 10), st.timedeltas(timedelta(seconds=5), timedelta(days=30)))
def test_a_retry_comes_while_the_url_still_answers(retries: int, url_lives: timedelta) -> None:
    decision = decide(POLICY, ImageFailure(FailureKind.SOURCE_ERROR), retries, None, url_lives=url_lives)
    assert decision.verdict is Verdict.RETRYING
    assert decision.retry_in <= url_lives


@given(st.integers(0, 10), st.timedeltas(timedelta(days=-30), timedelta(seconds=3)))
def test_at_the_end_of_its_url_an_image_waits_for_a_fresh_one(retries: int, url_lives: timedelta) -> None:
    decision = decide(POLICY, ImageFailure(FailureKind.SOURCE_ERROR), retries, None, url_lives=url_lives)
    assert (decision.verdict, decision.kind) == (Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind.remedy is Remedy.PERMANENT])
def test_a_permanent_failure_ends_it(kind: FailureKind) -> None:
    decision = decide(POLICY, ImageFailure(kind, retry_after_seconds=5), 0, None)
    assert (decision.verdict, decision.kind, decision.retry_in) == (Verdict.FAILED, kind, timedelta())


@given(st.sampled_from([kind for kind in FailureKind if kind.remedy is Remedy.FRESH_URL]), st.integers(0, 9))
def test_a_refused_url_waits_for_a_fresh_one_however_often_it_was_tried(kind: FailureKind, retries: int) -> None:
    decision = decide(POLICY, ImageFailure(kind), retries, None)
    assert (decision.verdict, decision.kind, decision.retry_in) == (Verdict.WAITING, kind, timedelta())


@given(failed_before)
def test_a_404_asks_for_a_fresh_url_once_and_any_later_one_means_gone(before: FailureKind | None) -> None:
    decision = decide(POLICY, ImageFailure(FailureKind.SOURCE_URL_404), 0, before)
    if before in (FailureKind.SOURCE_URL_404, FailureKind.SOURCE_GONE):
        assert (decision.verdict, decision.kind) == (Verdict.FAILED, FailureKind.SOURCE_GONE)
    else:
        assert (decision.verdict, decision.kind) == (Verdict.WAITING, FailureKind.SOURCE_URL_404)


def test_a_run_waits_for_the_short_delays_and_not_for_the_long_ones() -> None:
    longest = longest_wait_in_run(POLICY)
    assert all(step * (1 + POLICY.jitter) <= longest for step in POLICY.in_run)
    assert all(step * (1 - POLICY.jitter) > longest for step in POLICY.later)
