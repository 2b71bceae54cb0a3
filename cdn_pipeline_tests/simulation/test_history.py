"""The independent count against the project's own, on a catalog whose clock moves."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.simulation import history
from benchmarks.simulation.history import HOUR, ContradictionError, Job, Span, count_hour
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import compute_hour, write_hour
from cdn_pipeline.queue.leases import Run, release_dead_leases, renew_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.queue.catalogs import RUN, due_now, outcome, published, reference, register, see, session, take

START = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 5 * HOUR
MINUTE = timedelta(minutes=1)


@pytest.fixture
def catalog(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    migrate(engine, "https://cdn.example")
    history.install(engine)
    yield engine
    engine.dispose()


def move_to(engine: sa.Engine, moment: datetime) -> None:
    fast_clock.set_offset(engine, moment - datetime.now(UTC))


def work_until(engine: sa.Engine, connection: sa.Connection, since: datetime, until: datetime, run: Run = RUN) -> None:
    """Lets the time pass in which a run has jobs in hand; it renews its leases."""
    for number in range((until - since) // (MINUTE / 2)):
        move_to(engine, since + number * MINUTE / 2)
        renew_leases(connection, run)
    move_to(engine, until)


def play_two_hours(engine: sa.Engine) -> None:
    """Four images: one is published, one fails, one is retried and published an hour later, one stays open."""
    with session(engine) as connection:
        register(connection, RUN)
        move_to(engine, START + 10 * MINUTE)
        see(connection, *(reference(image=str(number)) for number in range(4)))
        jobs = take(connection)
        work_until(engine, connection, START + 10 * MINUTE, START + 16 * MINUTE)
        done: dict[str, Any] = {"download_ms": 101, "transcode_ms": 50, "upload_ms": 10, "bytes_in": 1001}
        settle(
            connection,
            RUN,
            [
                published(jobs[0]),
                outcome(jobs[1], Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, **done),
                outcome(jobs[2], Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, retry_in_seconds=2400, **done),
                outcome(jobs[3], Verdict.RELEASED),
            ],
        )
        move_to(engine, START + HOUR - MINUTE)
        due_now(connection)
        again = {job.job_id: job for job in take(connection)}
        work_until(engine, connection, START + HOUR - MINUTE, START + HOUR + MINUTE)
        settle(connection, RUN, [published(again[jobs[2].job_id]), outcome(again[jobs[3].job_id], Verdict.RELEASED)])
        move_to(engine, START + 3 * HOUR)


def store(engine: sa.Engine, *hours: int) -> None:
    with engine.begin() as connection:
        for hour in hours:
            write_hour(connection, compute_hour(connection, START + hour * HOUR))


def test_both_counts_agree_in_every_column(catalog: sa.Engine) -> None:
    play_two_hours(catalog)
    store(catalog, 0, 1)
    with catalog.connect() as connection:
        comparison = history.compare(connection, START, 2)
        first = count_hour(history.replay(connection), START)
    assert (comparison.hours, comparison.jobs, comparison.missing, comparison.differences) == (2, 3, (), ())
    assert first == {
        "jobs_processed": 2,
        "jobs_failed": 1,
        "avg_processing_time_ms": 0,
        "avg_download_time_ms": 101,
        "avg_upload_time_ms": 10,
        "total_bytes_processed": 1001,
        "avg_file_size_bytes": 1001,
        "error_categories": {"image_corrupt": 1},
        "peak_queue_depth": 4,
        "worker_utilization_percent": 12,  # six minutes, and the last one
    }


def test_a_stored_figure_that_is_wrong_is_named_and_so_is_an_hour_that_nobody_counted(catalog: sa.Engine) -> None:
    play_two_hours(catalog)
    store(catalog, 0)
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_processing_stats SET peak_queue_depth = 5"))
        comparison = history.compare(connection, START, 2)
    assert comparison.missing == (START + HOUR,)
    assert comparison.differences == (f"{START:%Y-%m-%d %H:%M} peak_queue_depth: stored 5, counted 4",)


def test_what_a_killed_run_had_in_hand_counts_until_its_last_renewal(catalog: sa.Engine) -> None:
    run = Run("doomed", "here:1")
    with session(catalog) as connection:
        move_to(catalog, START)
        see(connection, reference())
        with catalog.connect() as doomed:
            doomed = doomed.execution_options(isolation_level="AUTOCOMMIT")
            register(doomed, run)
            take(doomed, run)
            work_until(catalog, doomed, START, START + 9 * MINUTE, run)
            renew_leases(doomed, run)
            doomed.invalidate()
        move_to(catalog, START + 30 * MINUTE)
        assert release_dead_leases(connection, ["00"]) == 1
        move_to(catalog, START + 2 * HOUR)
    store(catalog, 0)
    with catalog.connect() as connection:
        assert count_hour(history.replay(connection), START)["worker_utilization_percent"] == 15
        assert history.compare(connection, START, 1).differences == ()


def test_a_run_that_slept_through_its_lease_counts_until_it_fell_asleep_and_from_when_it_woke(
    catalog: sa.Engine,
) -> None:
    with session(catalog) as connection:
        register(connection, RUN)
        move_to(catalog, START)
        see(connection, reference())
        [job] = take(connection)
        work_until(catalog, connection, START, START + 6 * MINUTE)
        renew_leases(connection, RUN)
        move_to(catalog, START + 30 * MINUTE)
        work_until(catalog, connection, START + 30 * MINUTE, START + 33 * MINUTE)
        move_to(catalog, START + 40 * MINUTE)
        settle(connection, RUN, [published(job)])
        move_to(catalog, START + 2 * HOUR)
    store(catalog, 0)
    with catalog.connect() as connection:
        # Six minutes, and two and a half: the last renewal was half a minute before it fell asleep again.
        assert count_hour(history.replay(connection), START)["worker_utilization_percent"] == 14
        assert history.compare(connection, START, 1).differences == ()


def test_a_time_that_is_not_when_it_happened_is_refused(catalog: sa.Engine) -> None:
    play_two_hours(catalog)
    with catalog.begin() as connection:
        lie = "UPDATE cdn_image_jobs SET status = 'failed', completed_at = now() - interval '1 minute'"
        connection.execute(sa.text(f"{lie} WHERE status = 'queued'"))
        with pytest.raises(ContradictionError, match="completed_at"):
            history.replay(connection)


def row(**columns: int | str | None) -> dict[str, int | str | None]:
    nothing = dict.fromkeys(("download_ms", "transcode_ms", "upload_ms", "bytes_in", "failure_kind"))
    return {**nothing, "status": "completed", **columns}


def test_means_are_rounded_to_nearest_and_a_half_upwards() -> None:
    ended = START + MINUTE
    jobs = [Job(START, row(download_ms=value), ended) for value in (1, 2)]
    assert count_hour(jobs, START)["avg_download_time_ms"] == 2
    assert count_hour([*jobs, Job(START, row(download_ms=1), ended)], START)["avg_download_time_ms"] == 1


def test_a_job_that_ends_when_another_one_comes_is_not_beside_it_in_the_queue() -> None:
    jobs = [Job(START - MINUTE, row(), START + MINUTE), Job(START + MINUTE, row(), None)]
    counted = count_hour(jobs, START)
    assert counted["peak_queue_depth"] == 1


def test_time_in_which_several_jobs_were_in_hand_counts_once_and_only_within_the_hour() -> None:
    spans = [Span(START - MINUTE, START + 6 * MINUTE), Span(START + 3 * MINUTE, START + 9 * MINUTE)]
    jobs = [Job(START - HOUR, row(status="queued"), None, [span]) for span in spans]
    assert count_hour(jobs, START)["worker_utilization_percent"] == 15
    assert count_hour(jobs, START - HOUR)["worker_utilization_percent"] == 2
