import uuid
from collections.abc import Sequence
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.engine.tally import MAX_SAMPLES, NOT_IN_RATE, Samples, Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import EFFECTS, Outcome, Verdict
from cdn_pipeline.queue.states import JobStatus, Stage

IMAGES = [uuid.UUID(int=number) for number in range(8)]
ENDS = [verdict for verdict in Verdict if EFFECTS[verdict][0] is JobStatus.COMPLETED]
FAILS = [Verdict.RETRYING, Verdict.WAITING, Verdict.FAILED]


def outcome(image: uuid.UUID, verdict: Verdict, failure: FailureKind | None = None, **numbers: int) -> Outcome:
    return Outcome(
        job_id=uuid.uuid4(),
        asset_id=image,
        shard="00",
        verdict=verdict,
        stage=Stage.DOWNLOAD,
        identity="file:a",
        source_url="http://127.0.0.1/picture",
        failure=failure,
        **numbers,  # type: ignore[arg-type]
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Outcome]:
    """Outcomes of a run: an image's attempts follow each other until one is done."""
    failed = st.builds(outcome, st.sampled_from(IMAGES), st.sampled_from(FAILS), st.sampled_from(FailureKind))
    other = st.builds(outcome, st.sampled_from(IMAGES), st.sampled_from([*ENDS, Verdict.ADVANCED, Verdict.RELEASED]))
    history, done = [], set()
    for made in draw(st.lists(failed | other, max_size=20)):
        if made.asset_id not in done:
            history.append(made)
        if made.verdict in (*ENDS, Verdict.ADVANCED):
            done.add(made.asset_id)
    return history


def tallied(outcomes: Sequence[Outcome]) -> Tally:
    tally = Tally()
    tally.claimed()
    for made in outcomes:
        tally.add(made)
    return tally


def last_outcomes(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return list({made.asset_id: made for made in outcomes}.values())


@given(histories())
def test_each_image_counts_once_by_its_last_outcome(history: list[Outcome]) -> None:
    tally, last = tallied(history), last_outcomes(history)
    assert tally.images == len(last)
    assert {verdict: count for verdict, count in tally.verdicts.items() if count} == {
        verdict: sum(made.verdict is verdict for made in last) for verdict in {made.verdict for made in last}
    }
    assert sum(tally.failures.values()) == sum(made.failure is not None for made in last)
    assert sum(tally.attempts_failed.values()) == sum(made.failure is not None for made in history)


@given(histories())
def test_completed_failed_and_not_in_rate_are_all_images(history: list[Outcome]) -> None:
    tally = tallied(history)
    assert tally.completed + tally.failed + tally.not_in_rate == tally.images
    assert min(tally.completed, tally.failed, tally.not_in_rate) >= 0


@given(histories())
def test_the_success_rate_leaves_out_images_gone_expired_or_released(history: list[Outcome]) -> None:
    judged = [
        made
        for made in last_outcomes(history)
        if made.verdict is not Verdict.RELEASED and made.failure not in NOT_IN_RATE
    ]
    good = [made for made in judged if made.failure is None]
    assert tallied(history).success_rate == (len(good) / len(judged) if judged else None)


@given(st.lists(histories(), max_size=3))
def test_the_total_is_the_sum_of_its_shards(shards: list[list[Outcome]]) -> None:
    tallies = [tallied(history) for history in shards]
    total = Tally.total(tallies)
    for number in ("images", "completed", "failed", "not_in_rate", "published", "unchanged", "renditions"):
        assert getattr(total, number) == sum(getattr(tally, number) for tally in tallies)


def test_an_image_that_healed_is_no_failure() -> None:
    image = IMAGES[0]
    tally = tallied(
        [
            outcome(image, Verdict.RELEASED),
            outcome(image, Verdict.RETRYING, FailureKind.SOURCE_ERROR),
            outcome(image, Verdict.PUBLISHED, bytes_in=10, bytes_out=4),
        ]
    )
    assert (tally.images, tally.published, tally.failed, tally.success_rate) == (1, 1, 0, 1.0)
    assert +tally.failures == {}
    assert tally.attempts_failed == {FailureKind.SOURCE_ERROR: 1}
    assert (tally.downloaded, tally.bytes_in, tally.bytes_out) == (1, 10, 4)


def test_an_image_whose_fresh_url_came_during_the_run_counts_by_its_new_job() -> None:
    waiting = outcome(IMAGES[0], Verdict.WAITING, FailureKind.SOURCE_URL_404)
    assert tallied([waiting, outcome(IMAGES[0], Verdict.PUBLISHED)]).success_rate == 1.0


def test_nothing_claimed_has_no_rate_and_takes_no_time() -> None:
    tally = Tally.total([Tally(), Tally()])
    assert tally.success_rate is None
    assert tally.images_per_second is None
    assert tally.seconds == 0.0


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=MAX_SAMPLES), st.integers(1, 100))
def test_percentiles_of_few_numbers_are_exact(numbers: list[int], percent: int) -> None:
    samples = Samples()
    for number in numbers:
        samples.add(number)
    percentile = samples.percentile(percent)
    assert percentile in numbers
    at_most = sum(number <= percentile for number in numbers)
    below = sum(number < percentile for number in numbers)
    assert 100 * below < percent * len(numbers) <= 100 * at_most


def test_percentiles_of_many_numbers_come_from_a_uniform_sample_of_bounded_size() -> None:
    samples = Samples()
    for number in range(50_000):
        samples.add(number)
    expected = quantiles(range(50_000), n=100)
    for percent in (5, 50, 95):
        assert samples.percentile(percent) == pytest.approx(expected[percent - 1], abs=50_000 * 0.06)
    assert Samples().percentile(50) is None
