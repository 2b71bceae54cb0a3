"""Statistics of an hour against an independent count, and that they do not depend on when they are made."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.observe.stats import (
    HOUR,
    SETTLES_IN,
    HourNotOverError,
    HourStats,
    HourTooOldError,
    StorageGrowth,
    compare_hours,
    compute_hour,
    latest_hours,
    missing_hours,
    note_storage,
    storage_growth,
    write_hour,
)
from cdn_pipeline.queue.housekeeping import JOBS_KEPT
from cdn_pipeline.queue.leases import LEASE, release_dead_leases
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.observe.histories import Job, count, histories, write
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, publish, published, reference, see, session, take_one

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
EIGHT = THIS_HOUR - timedelta(hours=6)  # "eight o'clock": an hour that settled long ago
YESTERDAY = THIS_HOUR.replace(hour=0) - timedelta(days=2)
MINUTE = timedelta(minutes=1)


@contextmanager
def rolled_back(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with catalog.connect() as connection:
        yield connection
        connection.rollback()


def computed(catalog: sa.Engine, jobs: list[Job], hour: datetime = EIGHT) -> HourStats:
    with rolled_back(catalog) as connection:
        write(connection, jobs)
        return compute_hour(connection, hour)


# -- every column, against a naive count --

many_examples = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(jobs=histories(EIGHT - 2 * HOUR, EIGHT + 3 * HOUR))
@many_examples
def test_every_column_is_what_a_naive_count_gives(catalog: sa.Engine, jobs: list[Job]) -> None:
    with rolled_back(catalog) as connection:
        write(connection, jobs)
        for hour in (EIGHT - HOUR, EIGHT, EIGHT + HOUR):
            assert compute_hour(connection, hour) == count(jobs, hour)


@given(jobs=histories(YESTERDAY, YESTERDAY + timedelta(days=1)))
@settings(many_examples, max_examples=15)
def test_the_hours_sum_up_to_the_day(catalog: sa.Engine, jobs: list[Job]) -> None:
    with rolled_back(catalog) as connection:
        write(connection, jobs)
        day = [compute_hour(connection, YESTERDAY + hour * HOUR) for hour in range(24)]
    ended = [job for job in jobs if job.status in ("completed", "failed")]
    kinds = sum((Counter(stats.error_categories) for stats in day), Counter())
    assert sum(stats.jobs_processed for stats in day) == len(ended)
    assert sum(stats.total_bytes_processed for stats in day) == sum(job.bytes_in or 0 for job in ended)
    assert kinds == Counter(job.failure_kind for job in ended if job.status == "failed")
    assert sum(stats.jobs_failed for stats in day) == kinds.total()


def test_an_empty_hour_is_all_zeros(catalog: sa.Engine) -> None:
    stats = computed(catalog, [])
    assert stats == HourStats(EIGHT.date(), EIGHT.hour, 0, 0, 0, 0, 0, 0, 0, {}, 0, 0)
    assert stats.start == EIGHT
    assert stats.success_rate is None


def test_a_job_open_through_the_whole_hour_is_in_its_queue_and_nothing_else(catalog: sa.Engine) -> None:
    still_open = Job("queued", EIGHT - 5 * HOUR)
    ended_since = Job("completed", EIGHT - 5 * HOUR, EIGHT + 2 * HOUR)
    stats = computed(catalog, [still_open, ended_since])
    assert (stats.jobs_processed, stats.peak_queue_depth) == (0, 2)
    assert stats.worker_utilization_percent == 0


def test_a_job_that_ends_when_another_begins_is_not_open_together_with_it(catalog: sa.Engine) -> None:
    noon = EIGHT + 30 * MINUTE
    handing_over = [Job("completed", EIGHT, noon), Job("completed", noon, noon + MINUTE)]
    assert computed(catalog, handing_over).peak_queue_depth == 1


def test_utilization_counts_time_in_hand_once_however_many_jobs_there_are(catalog: sa.Engine) -> None:
    quarter = (EIGHT - 15 * MINUTE, EIGHT + 15 * MINUTE)
    overlapping = (EIGHT + 10 * MINUTE, EIGHT + 30 * MINUTE)
    jobs = [Job("completed", EIGHT - HOUR, EIGHT + 15 * MINUTE, (quarter,)), Job("queued", EIGHT, busy=(overlapping,))]
    assert computed(catalog, jobs).worker_utilization_percent == 50


def test_a_clock_that_was_set_back_ends_a_job_and_leaves_the_queue_alone(catalog: sa.Engine) -> None:
    stats = computed(catalog, [Job("completed", EIGHT + 2 * HOUR, EIGHT + MINUTE), Job("queued", EIGHT - HOUR)])
    assert (stats.jobs_processed, stats.peak_queue_depth) == (1, 1)


def test_the_success_rate_leaves_out_what_is_gone_or_expired(catalog: sa.Engine) -> None:
    def ended(status: str, kind: str | None = None) -> Job:
        return Job(status, EIGHT, EIGHT + MINUTE, failure_kind=kind)

    kinds = ("source_gone", "source_url_expired", "image_corrupt")
    stats = computed(catalog, [ended("completed"), *(ended("failed", kind) for kind in kinds)])
    assert (stats.jobs_completed, stats.jobs_failed, stats.success_rate) == (1, 3, 0.5)


# -- the same, whenever it is counted --


@pytest.fixture
def clocked(empty_database: str) -> Iterator[sa.Connection]:
    """A session on a catalog whose clock stands at eight."""
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    migrate(engine, "https://cdn.example")
    with session(engine) as connection:
        set_clock(connection, EIGHT)
        yield connection
    engine.dispose()


def set_clock(connection: sa.Connection, moment: datetime) -> None:
    fast_clock.set_offset(connection.engine, moment - datetime.now(UTC))


def test_a_job_in_hand_counts_as_it_will_once_it_has_ended(clocked: sa.Connection) -> None:
    see(clocked, reference())
    set_clock(clocked, EIGHT + 45 * MINUTE)
    job = take_one(clocked)
    set_clock(clocked, EIGHT + 64 * MINUTE)
    renew_in_time(clocked)
    set_clock(clocked, EIGHT + 65 * MINUTE)
    while_in_hand = compute_hour(clocked, EIGHT)

    settle(clocked, RUN, [published(job)])

    assert while_in_hand.worker_utilization_percent == 25
    assert compute_hour(clocked, EIGHT) == while_in_hand


def test_a_killed_run_counts_until_its_last_renewal_released_or_not(clocked: sa.Connection) -> None:
    see(clocked, reference())
    take_one(clocked)
    set_clock(clocked, EIGHT + 30 * MINUTE)
    renew_in_time(clocked)
    set_clock(clocked, EIGHT + 65 * MINUTE)
    before = compute_hour(clocked, EIGHT)

    assert release_dead_leases(clocked, ["00"]) == 1

    assert before.worker_utilization_percent == 50
    assert compute_hour(clocked, EIGHT) == before


def test_what_happens_later_leaves_a_settled_hour_as_it_is(clocked: sa.Connection) -> None:
    """A job is retried in the next hour, its image is replaced, and other jobs come and go."""
    see(clocked, reference())
    set_clock(clocked, EIGHT + 10 * MINUTE)
    failed = outcome(take_one(clocked), Verdict.RETRYING, retry_in_seconds=3600.0, download_ms=70)
    set_clock(clocked, EIGHT + 40 * MINUTE)
    renew_in_time(clocked)
    settle(clocked, RUN, [failed])
    set_clock(clocked, EIGHT + 61 * MINUTE)
    early = compute_hour(clocked, EIGHT)

    set_clock(clocked, EIGHT + 110 * MINUTE)
    publish(clocked)
    see(clocked, reference(image="2"))
    set_clock(clocked, EIGHT + 130 * MINUTE)
    publish(clocked, content="y", sha256="B")

    assert (early.jobs_processed, early.peak_queue_depth, early.worker_utilization_percent) == (0, 1, 50)
    assert compute_hour(clocked, EIGHT) == early
    assert compute_hour(clocked, EIGHT + HOUR).jobs_processed == 1


def renew_in_time(connection: sa.Connection) -> None:
    """As a run that has renewed its leases all along, and just did."""
    assert connection.execute(
        sa.text("UPDATE cdn_image_jobs SET lease_until = clock_timestamp() + :lease WHERE status = 'processing'"),
        {"lease": LEASE},
    ).rowcount


# -- hours that are refused --


def test_an_hour_that_is_not_over_is_refused(clocked: sa.Connection) -> None:
    set_clock(clocked, EIGHT + 20 * MINUTE)
    words = f"{EIGHT:%H}:00 UTC is over at {EIGHT + HOUR:%H}:00 .*; now it is {EIGHT:%Y-%m-%d %H}:20"
    with pytest.raises(HourNotOverError, match=words):
        compute_hour(clocked, EIGHT)


def test_an_hour_settles_when_every_lease_that_it_saw_has_been_renewed_or_lost(clocked: sa.Connection) -> None:
    set_clock(clocked, EIGHT + HOUR + SETTLES_IN / 2)
    with pytest.raises(HourNotOverError):
        compute_hour(clocked, EIGHT)
    set_clock(clocked, EIGHT + HOUR + SETTLES_IN)
    assert compute_hour(clocked, EIGHT).start == EIGHT


def test_an_hour_whose_jobs_may_be_deleted_is_refused(clocked: sa.Connection) -> None:
    set_clock(clocked, EIGHT + JOBS_KEPT - MINUTE)
    assert compute_hour(clocked, EIGHT).start == EIGHT
    set_clock(clocked, EIGHT + JOBS_KEPT + MINUTE)
    with pytest.raises(HourTooOldError, match="began more than 90 days ago"):
        compute_hour(clocked, EIGHT)


@pytest.mark.parametrize("hour", [EIGHT + 30 * MINUTE, EIGHT + timedelta(microseconds=1), EIGHT.replace(tzinfo=None)])
def test_only_the_first_moment_of_an_hour_names_it(catalog: sa.Engine, hour: datetime) -> None:
    with catalog.connect() as connection, pytest.raises(ValueError, match="first moment"):
        compute_hour(connection, hour)


# -- stored hours --


def test_an_hour_is_stored_once_and_the_last_count_stands(catalog: sa.Engine) -> None:
    first = computed(catalog, [Job("failed", EIGHT, EIGHT + MINUTE, failure_kind="image_corrupt", bytes_in=7)])
    second = replace(first, jobs_processed=2, error_categories={"image_corrupt": 1, "source_gone": 1})
    for stats in (first, first, second):
        with catalog.begin() as connection:
            write_hour(connection, stats)
            assert latest_hours(connection, 9) == [stats]
    with catalog.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM cdn_processing_stats")) == 1


def test_the_latest_hours_are_those_of_the_latest_day(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        assert latest_hours(connection, 2) == []
        hours = [YESTERDAY + 2 * HOUR, YESTERDAY - HOUR, YESTERDAY + HOUR]
        for hour in hours:
            write_hour(connection, compute_hour(connection, hour))
        latest = latest_hours(connection, 2)
    assert [stats.start for stats in latest] == [YESTERDAY + 2 * HOUR, YESTERDAY + HOUR]


def test_stored_hours_that_differ_from_their_jobs_are_found_column_by_column(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        write(connection, [Job("completed", EIGHT, EIGHT + MINUTE, bytes_in=5)])
        for hour in (EIGHT - 48 * HOUR, EIGHT - HOUR, EIGHT):
            write_hour(connection, compute_hour(connection, hour))
        assert [each.differences for each in compare_hours(connection, timedelta(hours=24))] == [{}, {}]

        write(connection, [Job("completed", EIGHT, EIGHT + MINUTE, bytes_in=7)])

        same, other = compare_hours(connection, timedelta(hours=24))
    assert (same.stored.start, same.differences) == (EIGHT - HOUR, {})
    assert other.differences == {
        "jobs_processed": (1, 2),
        "total_bytes_processed": (5, 12),
        "avg_file_size_bytes": (5, 6),
        "peak_queue_depth": (1, 2),
    }


def test_hours_that_nobody_counted_are_missing_from_the_first_stored_one_on(clocked: sa.Connection) -> None:
    set_clock(clocked, EIGHT + 5 * MINUTE)
    assert missing_hours(clocked, timedelta(hours=24)) == []
    for back in (9, 6, 4):
        write_hour(clocked, compute_hour(clocked, EIGHT - back * HOUR))
    before_seven = [EIGHT - back * HOUR for back in (8, 7, 5, 3, 2)]

    assert missing_hours(clocked, timedelta(hours=24)) == before_seven  # that from seven on is being counted now
    assert missing_hours(clocked, timedelta(hours=7)) == before_seven[2:]

    set_clock(clocked, EIGHT + HOUR)
    assert missing_hours(clocked, timedelta(hours=24)) == [*before_seven, EIGHT - HOUR]


# -- what the stores hold --


def stored_storage(connection: sa.Connection) -> list[tuple[int | None, int | None]]:
    """(bytes, objects) of each stored hour, the earliest first."""
    rows = connection.execute(
        sa.text("SELECT storage_bytes, storage_objects FROM cdn_processing_stats ORDER BY date, hour")
    )
    return [(row.storage_bytes, row.storage_objects) for row in rows]


def test_a_reading_of_the_stores_stays_when_its_hour_is_counted_again(clocked: sa.Connection) -> None:
    see(clocked, reference())
    publish(clocked)
    set_clock(clocked, EIGHT + HOUR + SETTLES_IN)
    for _ in range(2):
        stats = compute_hour(clocked, EIGHT)
        write_hour(clocked, stats)
        note_storage(clocked, stats)
        [reading] = stored_storage(clocked)
        clocked.execute(sa.text("UPDATE cdn_image_renditions SET file_size = file_size + 1000"))
        assert reading == (12, 3)  # an original of 10 bytes and two renditions of one
        assert [each.differences for each in compare_hours(clocked, timedelta(hours=24))] == [{}]


def test_an_hour_that_is_long_over_gets_no_reading(clocked: sa.Connection) -> None:
    set_clock(clocked, EIGHT + 2 * HOUR)
    stats = compute_hour(clocked, EIGHT)
    write_hour(clocked, stats)
    note_storage(clocked, stats)
    assert stored_storage(clocked) == [(None, None)]


def read_stores(connection: sa.Connection, hour: datetime, held: int) -> None:
    values = {"date": hour.date(), "hour": hour.hour, "held": held}
    insert = "INSERT INTO cdn_processing_stats (date, hour, storage_bytes) VALUES (:date, :hour, :held)"
    connection.execute(sa.text(insert), values)


def test_growth_compares_the_latest_reading_with_that_of_a_week_before(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        for ago, held in ((timedelta(days=7, hours=1), 60), (timedelta(days=7), 70), (timedelta(days=1), 90)):
            read_stores(connection, EIGHT - ago, held)
        read_stores(connection, EIGHT, 100)
        assert storage_growth(connection) == StorageGrowth(before=70, now=100)


@pytest.mark.parametrize("ago", [timedelta(days=6, hours=23), timedelta(days=8, hours=1)])
def test_without_a_reading_of_a_week_ago_growth_is_not_known(catalog: sa.Engine, ago: timedelta) -> None:
    with session(catalog) as connection:
        read_stores(connection, EIGHT - ago, 70)
        read_stores(connection, EIGHT, 100)
        assert storage_growth(connection) is None
