from hypothesis import example, given
from hypothesis import strategies as st

from cdn_pipeline.observe.thresholds import Judgement, judge_not_in_rate, judge_objects, judge_success_rate

COUNTS = st.integers(0, 10_000)


def verdict(judgement: Judgement) -> str:
    assert not (judgement.passed and judgement.is_error)
    return "ok" if judgement.passed else "error" if judgement.is_error else "warning"


@given(COUNTS, COUNTS)
@example(95, 5)  # exactly 95 % and 90 %: still above the threshold
@example(90, 10)
@example(18, 2)
@example(17, 3)
@example(0, 0)
def test_the_success_rate_warns_below_95_and_fails_below_90_percent_of_20_images(completed: int, failed: int) -> None:
    judged = completed + failed
    if judged < 20 or completed * 100 >= judged * 95:
        expected = "ok"
    elif completed * 100 >= judged * 90:
        expected = "warning"
    else:
        expected = "error"
    assert verdict(judge_success_rate(completed, failed)) == expected


@given(COUNTS, COUNTS)
@example(4, 16)  # exactly 20 %
@example(5, 15)
@example(19, 0)
def test_more_than_a_fifth_gone_or_expired_of_20_images_is_an_error(lost: int, others: int) -> None:
    claimed = lost + others
    expected = "error" if claimed >= 20 and lost * 5 > claimed else "ok"
    assert verdict(judge_not_in_rate(lost, claimed)) == expected


@given(COUNTS, st.data())
def test_one_missing_object_is_an_error(inspected: int, data: st.DataObject) -> None:
    missing = data.draw(st.integers(0, inspected))
    assert verdict(judge_objects(inspected, missing)) == ("error" if missing else "ok")


def test_words_say_the_numbers_and_the_threshold_that_was_missed() -> None:
    assert judge_success_rate(17, 3).words == "17 of 20 images completed (85.0%), below 90%"
    assert judge_success_rate(1, 1).words == "1 of 2 images completed (50.0%); fewer than 20 are not judged"
    assert judge_success_rate(0, 0).words == "no image to judge"
    assert judge_not_in_rate(5, 20).words == (
        "5 of 20 claimed images ended gone, expired or released (25.0%), above 20%"
    )
    assert judge_not_in_rate(0, 0).words == "no image was claimed"
    assert judge_objects(200, 1).words == "199 of 200 inspected objects are in the store"
