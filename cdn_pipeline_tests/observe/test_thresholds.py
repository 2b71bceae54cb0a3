from datetime import timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from cdn_pipeline.observe.thresholds import (
    Judgement,
    judge_deadlines,
    judge_failed_shards,
    judge_first_bytes,
    judge_health,
    judge_lost,
    judge_not_in_rate,
    judge_objects,
    judge_oldest_due,
    judge_probes,
    judge_processing_time,
    judge_queue_depth,
    judge_scans,
    judge_stats,
    judge_success_rate,
    judge_urls,
)

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
@example(95, 5)
@example(80, 20)
@example(15, 4)
def test_the_whole_is_degraded_below_95_and_unhealthy_below_80_percent(completed: int, failed: int) -> None:
    judged = completed + failed
    if judged < 20 or completed * 100 >= judged * 95:
        expected = "ok"
    elif completed * 100 >= judged * 80:
        expected = "warning"
    else:
        expected = "error"
    assert verdict(judge_health(completed, failed)) == expected


@given(COUNTS)
@example(1000)
@example(2000)
def test_more_than_1000_urgent_jobs_are_a_warning_and_more_than_2000_an_error(depth: int) -> None:
    assert verdict(judge_queue_depth(depth)) == ("error" if depth > 2000 else "warning" if depth > 1000 else "ok")


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


@given(st.integers(0, 10_000), COUNTS)
@example(2000, 20)
@example(2001, 20)
@example(2001, 19)
def test_jobs_that_take_more_than_two_seconds_on_average_are_a_warning(mean_ms: int, completed: int) -> None:
    expected = "warning" if completed >= 20 and mean_ms > 2000 else "ok"
    assert verdict(judge_processing_time(mean_ms, completed)) == expected


def test_stored_hours_that_differ_are_an_error_that_names_them() -> None:
    assert judge_stats(3, [], []).passed
    judgement = judge_stats(3, ["2026-01-31-14:00", "2026-01-31-16:00"], [])
    assert verdict(judgement) == "error"
    assert judgement.words == (
        "2 of 3 stored hours differ from their jobs; backfill 2026-01-31-14:00, 2026-01-31-16:00"
    )


def test_hours_that_are_missing_are_a_warning_that_names_them() -> None:
    judgement = judge_stats(3, [], ["2026-01-31-15:00"])
    assert verdict(judgement) == "warning"
    assert judgement.words == "hours not counted: 1; backfill 2026-01-31-15:00"
    both = judge_stats(3, ["2026-01-31-16:00"], ["2026-01-31-15:00"])
    assert verdict(both) == "error"
    assert both.words.endswith("; backfill 2026-01-31-15:00, 2026-01-31-16:00")


@given(COUNTS)
@example(0)
@example(1)
def test_one_lost_image_is_an_error_and_one_at_risk_or_one_shard_left_behind_a_warning(count: int) -> None:
    assert verdict(judge_lost(count, count)) == ("error" if count else "ok")
    assert verdict(judge_lost(count, 0)) == ("warning" if count else "ok")
    for judgement in (judge_deadlines(count, ""), judge_failed_shards(count), judge_scans(True, count)):
        assert verdict(judgement) == ("warning" if count else "ok")


def test_a_source_that_was_never_read_has_no_stale_shards() -> None:
    assert verdict(judge_scans(False, 64)) == "ok"


@given(st.timedeltas(timedelta(), timedelta(days=9)))
@example(timedelta(hours=1))
@example(timedelta(hours=6))
def test_a_job_due_for_an_hour_is_a_warning_and_for_six_an_error(age: timedelta) -> None:
    expected = "error" if age > timedelta(hours=6) else "warning" if age > timedelta(hours=1) else "ok"
    assert verdict(judge_oldest_due(age)) == expected
    assert verdict(judge_oldest_due(None)) == "ok"
    assert judge_oldest_due(timedelta(minutes=70)).words == "an urgent job has been due for 70 min, more than 60 min"


@given(COUNTS, st.data())
@example(100, None)
def test_fewer_than_99_percent_of_100_urls_in_time_are_a_warning(probed: int, data: st.DataObject | None) -> None:
    in_time = data.draw(st.integers(0, probed)) if data else 99  # exactly 99 %: in time
    expected = "ok" if probed < 100 or in_time * 100 >= probed * 99 else "warning"
    assert verdict(judge_first_bytes(in_time / probed if probed else None, probed)) == expected


@given(st.integers(1, 1000), st.data())
def test_one_broken_url_is_an_error(probed: int, data: st.DataObject) -> None:
    broken = data.draw(st.integers(0, probed))
    assert verdict(judge_urls(probed, broken)) == ("error" if broken else "ok")


def test_one_job_is_not_told_as_many() -> None:
    assert judge_queue_depth(1).words == "1 urgent job is in the queue"
    assert judge_queue_depth(2).words == "2 urgent jobs are in the queue"


@given(st.timedeltas(timedelta(), timedelta(days=90)))
@example(timedelta(hours=3))
def test_probes_older_than_three_hours_are_a_warning(age: timedelta) -> None:
    assert verdict(judge_probes(age)) == ("warning" if age > timedelta(hours=3) else "ok")
