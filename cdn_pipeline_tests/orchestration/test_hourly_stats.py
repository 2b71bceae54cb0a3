"""The job `hourly_stats`: hours counted, stored, shown as numbers, and checked."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

from cdn_pipeline.definitions import defs
from cdn_pipeline.observe.stats import HOUR
from cdn_pipeline.orchestration.hours import hours
from cdn_pipeline.queue.housekeeping import JOBS_KEPT
from cdn_pipeline_tests.observe.histories import Job, write
from cdn_pipeline_tests.orchestration.workplace import Workplace, shard_tags, verdicts

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
LAST = THIS_HOUR - 2 * HOUR  # settled, whatever the minute
MINUTE = timedelta(minutes=1)
STATS = dg.AssetKey("processing_stats")


def key(hour: datetime) -> str:
    return f"{hour:%Y-%m-%d-%H:%M}"


def run_hours(workplace: Workplace, first: datetime, last: datetime | None = None) -> dg.ExecuteInProcessResult:
    """The job for one hour, or for a range of hours as a backfill starts it."""
    return defs.resolve_job_def("hourly_stats").execute_in_process(
        instance=workplace.instance,
        tags=shard_tags(key(first), key(last) if last else None),
        raise_on_error=False,
    )


def shown(run: dg.ExecuteInProcessResult) -> Mapping[str | None, Mapping[str, Any]]:
    """The metadata of each hour, as plain values."""
    made = run.asset_materializations_for_node("processing_stats")
    return {each.partition: {name: value.value for name, value in each.metadata.items()} for each in made}


def jobs_of(hour: datetime, completed: int, failed: int = 0, **more: Any) -> Sequence[Job]:
    ended_at = hour + 30 * MINUTE
    return [
        *(Job("completed", hour, ended_at, **more) for _ in range(completed)),
        *(Job("failed", hour, ended_at, failure_kind="image_corrupt", **more) for _ in range(failed)),
    ]


def stored_hours(catalog: sa.Engine) -> Sequence[tuple[int, int]]:
    with catalog.connect() as connection:
        rows = connection.execute(sa.text("SELECT hour, jobs_processed FROM cdn_processing_stats ORDER BY date, hour"))
        return [(row.hour, row.jobs_processed) for row in rows]


def test_an_hour_is_counted_stored_and_shown(memory_workplace: Workplace, catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        write(connection, jobs_of(LAST, completed=3, failed=1, download_ms=100, upload_ms=50, bytes_in=2000))

    run = run_hours(memory_workplace, LAST)

    assert run.success
    assert stored_hours(catalog) == [(LAST.hour, 4)]
    assert shown(run) == {
        key(LAST): {
            "jobs processed": 4,
            "jobs failed": 1,
            "success rate": 0.75,
            "mean processing time (ms)": 150,
            "mean download time (ms)": 100,
            "mean upload time (ms)": 50,
            "bytes in": 8000,
            "mean file size (bytes)": 2000,
            "peak queue depth": 4,
            "worker utilization (%)": 0,
            "failed by kind": {"image_corrupt": 1},
        }
    }
    assert verdicts(run) == {
        "mean_processing_time": (True, "WARN"),
        "stats_consistent_with_jobs": (True, "WARN"),
    }


def test_a_backfilled_range_shows_every_hour_its_own_numbers(memory_workplace: Workplace, catalog: sa.Engine) -> None:
    first = LAST - 23 * HOUR
    with catalog.begin() as connection:
        for number in range(24):
            write(connection, jobs_of(first + number * HOUR, completed=number))

    for _ in range(2):  # again: the same
        run = run_hours(memory_workplace, first, LAST)
        assert run.success
        numbers = shown(run)
        assert [numbers[key(first + number * HOUR)]["jobs processed"] for number in range(24)] == list(range(24))
        assert len(stored_hours(catalog)) == 24
    status = memory_workplace.instance.get_status_by_partition(STATS, [key(first), key(LAST)], hours)
    assert status is not None
    assert {each.name for each in status.values() if each is not None} == {"MATERIALIZED"}


def test_an_hour_whose_jobs_may_be_deleted_fails_with_the_reason(
    memory_workplace: Workplace, catalog: sa.Engine
) -> None:
    run = run_hours(memory_workplace, datetime(2026, 1, 1, tzinfo=UTC))

    assert not run.success
    [failure] = [event for event in run.all_events if event.event_type is dg.DagsterEventType.STEP_FAILURE]
    assert failure.step_failure_data.user_failure_data is not None
    assert "began more than 90 days ago" in str(failure.step_failure_data.user_failure_data.description)
    assert stored_hours(catalog) == []


def test_an_hour_that_is_refused_leaves_the_others_counted_and_shown(
    memory_workplace: Workplace, catalog: sa.Engine
) -> None:
    oldest_kept = THIS_HOUR - JOBS_KEPT + HOUR  # one hour more, so that no minute can pass it
    run = run_hours(memory_workplace, oldest_kept - 3 * HOUR, oldest_kept + HOUR)

    assert not run.success
    [failure] = [event for event in run.all_events if event.event_type is dg.DagsterEventType.STEP_FAILURE]
    assert failure.step_failure_data.user_failure_data is not None
    refused = str(failure.step_failure_data.user_failure_data.description)
    assert [f"{oldest_kept - back * HOUR:%Y-%m-%d %H:%M}" in refused for back in (3, 2, 0)] == [True, True, False]
    counted = [oldest_kept, oldest_kept + HOUR]
    assert [hour for hour, _ in stored_hours(catalog)][-2:] == [hour.hour for hour in counted]
    assert {key(hour) for hour in counted} <= memory_workplace.instance.get_materialized_partitions(STATS)
    assert key(oldest_kept - 3 * HOUR) not in memory_workplace.instance.get_materialized_partitions(STATS)


def test_dagster_offers_no_hour_that_is_not_over() -> None:
    assert key(THIS_HOUR) not in hours.get_partition_keys(current_time=THIS_HOUR + 59 * MINUTE)
    assert key(THIS_HOUR - HOUR) in hours.get_partition_keys(current_time=THIS_HOUR + 59 * MINUTE)


def test_slow_jobs_of_the_latest_hour_are_a_warning(memory_workplace: Workplace, catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        write(connection, jobs_of(LAST - HOUR, completed=20, transcode_ms=2001))
        write(connection, jobs_of(LAST, completed=20, transcode_ms=2000))

    slow = run_hours(memory_workplace, LAST - HOUR)
    assert slow.success
    assert verdicts(slow)["mean_processing_time"] == (False, "WARN")
    assert verdicts(run_hours(memory_workplace, LAST))["mean_processing_time"] == (True, "WARN")
    again = run_hours(memory_workplace, LAST - HOUR)  # counted again, but it is not the latest
    assert verdicts(again)["mean_processing_time"] == (True, "WARN")


def test_stored_hours_that_differ_are_named_and_a_backfill_mends_them(
    memory_workplace: Workplace, catalog: sa.Engine
) -> None:
    wrong = LAST - HOUR
    assert run_hours(memory_workplace, wrong, LAST).success
    with catalog.begin() as connection:
        write(connection, jobs_of(wrong, completed=1))

    run = run_hours(memory_workplace, LAST)

    assert run.success  # it tells, and blocks nothing
    assert verdicts(run)["stats_consistent_with_jobs"] == (False, "ERROR")
    [check] = [made for made in run.get_asset_check_evaluations() if made.check_name == "stats_consistent_with_jobs"]
    assert check.description == f"1 of 2 stored hours differ from their jobs; backfill {key(wrong)}"
    assert check.metadata["stored, counted again"] == dg.MetadataValue.json(
        {key(wrong): {"jobs_processed": [0, 1], "peak_queue_depth": [0, 1]}}
    )
    assert verdicts(run_hours(memory_workplace, wrong))["stats_consistent_with_jobs"] == (True, "WARN")


def test_hours_that_are_missing_are_named(memory_workplace: Workplace, catalog: sa.Engine) -> None:
    assert run_hours(memory_workplace, LAST - 3 * HOUR).success
    run = run_hours(memory_workplace, LAST)
    assert verdicts(run)["stats_consistent_with_jobs"] == (False, "WARN")
    [check] = [made for made in run.get_asset_check_evaluations() if made.check_name == "stats_consistent_with_jobs"]
    assert check.metadata["hours that are missing"].value == [key(LAST - 2 * HOUR), key(LAST - HOUR)]


# -- the schedule --


def ask(instance: dg.DagsterInstance, tick: datetime) -> dg.RunRequest | None:
    """What the schedule asks for at a tick."""
    schedule = defs.resolve_schedule_def("hourly_stats_schedule")
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=tick, repository_def=defs.get_repository_def()
    ) as context:
        requests = schedule.evaluate_tick(context).run_requests
    return requests[0] if requests else None


def hours_of(request: dg.RunRequest) -> Mapping[str, str]:
    return {name: value for name, value in request.tags.items() if "partition" in name}


def test_at_first_the_schedule_asks_for_the_last_day(workplace: Workplace) -> None:
    tick = THIS_HOUR + 5 * MINUTE
    request = ask(workplace.instance, tick)
    assert request is not None
    assert hours_of(request) == shard_tags(key(THIS_HOUR - 24 * HOUR), key(THIS_HOUR - HOUR))


def test_after_a_gap_one_run_counts_what_was_missed_and_then_the_hour_before_is_enough(
    workplace: Workplace, catalog: sa.Engine
) -> None:
    assert run_hours(workplace, LAST - 30 * HOUR, LAST - 7 * HOUR).success
    tick = LAST + HOUR + 5 * MINUTE
    request = ask(workplace.instance, tick)
    assert request is not None
    assert hours_of(request) == shard_tags(key(LAST - 6 * HOUR), key(LAST))

    result = defs.resolve_job_def("hourly_stats").execute_in_process(
        instance=workplace.instance, tags=dict(request.tags)
    )

    assert verdicts(result)["stats_consistent_with_jobs"] == (True, "WARN")
    assert len(stored_hours(catalog)) == 31
    assert ask(workplace.instance, tick) is None
    next_one = ask(workplace.instance, tick + HOUR)
    assert next_one is not None
    assert hours_of(next_one) == shard_tags(key(LAST + HOUR))
    assert next_one.run_key != request.run_key


def test_a_run_that_failed_is_asked_for_again_an_hour_later(workplace: Workplace) -> None:
    tick = THIS_HOUR + 5 * MINUTE
    first, later = ask(workplace.instance, tick), ask(workplace.instance, tick + HOUR)
    assert first is not None
    assert later is not None
    assert first.run_key != later.run_key
