"""Past hours taken together, and against the period before."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.observe.history import Trend, history
from cdn_pipeline.observe.stats import HOUR, HourStats, write_hour


def this_hour(connection: sa.Connection) -> datetime:
    return catalog_time(connection).astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def hour(
    start: datetime, *, processed: int = 0, failed: int = 0, gone: int = 0, ms: int = 0, depth: int = 0
) -> HourStats:
    """An hour in which so many jobs ended; `gone` of the failed ones were gone at their source."""
    kinds = {"image_corrupt": failed - gone, "source_gone": gone}
    return HourStats(
        date=start.date(),
        hour=start.hour,
        jobs_processed=processed,
        jobs_failed=failed,
        avg_processing_time_ms=ms,
        avg_download_time_ms=ms // 2,
        avg_upload_time_ms=ms // 4,
        total_bytes_processed=processed * 1000,
        avg_file_size_bytes=1000,
        error_categories={kind: count for kind, count in kinds.items() if count},
        peak_queue_depth=depth,
        worker_utilization_percent=depth,
    )


def store(connection: sa.Connection, hours_ago: int, **figures: int) -> None:
    write_hour(connection, hour(this_hour(connection) - hours_ago * HOUR, **figures))


def test_a_period_is_compared_with_the_one_before(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        store(connection, 1, processed=30, failed=3, gone=1, ms=100, depth=7)
        store(connection, 2, processed=10, ms=200, depth=9)
        store(connection, 3, processed=20, failed=2, ms=100, depth=3)
        store(connection, 4)
        store(connection, 5, processed=1000)  # of neither
        found = history(connection, 2)
    assert [each.jobs_processed for each in found.hours] == [10, 30]
    assert found.end - found.start == timedelta(hours=2)
    assert (found.totals.hours, found.totals.jobs_processed, found.totals.peak_queue_depth) == (2, 40, 9)
    assert found.totals.success_rate == pytest.approx(37 / 39)  # one was gone, which is nobody's failure
    assert found.totals.avg_processing_time_ms == round((27 * 100 + 10 * 200) / 37)
    assert found.failures == {"image_corrupt": 2, "source_gone": 1}
    assert found.trends["jobs_processed"] == Trend(40, 20)
    assert found.trends["jobs_processed"].change_percent == 100


def test_without_hours_before_there_is_no_trend(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        store(connection, 1, processed=5)
        found = history(connection, 24)
    assert {name: trend.change_percent for name, trend in found.trends.items()} == dict.fromkeys(found.trends)
    assert found.trends["jobs_processed"] == Trend(5, None)


def test_a_period_ends_with_the_last_hour_that_is_stored(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        for ago in range(2, 6):  # the last whole hour is not counted yet
            store(connection, ago, processed=10)
        found = history(connection, 2)
        assert found.end == this_hour(connection) - HOUR
    assert found.trends["jobs_processed"] == Trend(20, 20)


def test_sums_and_peaks_of_fewer_hours_are_no_trend_but_means_are(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        for ago in (1, 2, 3):
            store(connection, ago, processed=10, failed=1, ms=100, depth=5)
        found = history(connection, 2)
    for name in ("jobs_processed", "jobs_failed", "total_bytes_processed", "peak_queue_depth"):
        assert found.trends[name].before is None, name
    assert found.trends["avg_processing_time_ms"] == Trend(100, 100)
    assert found.trends["success_rate"] == Trend(0.9, 0.9)


def test_nothing_stored_is_nothing_told(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        found = history(connection, 24)
    assert found.hours == []
    assert (found.totals.jobs_processed, found.totals.success_rate, found.totals.avg_processing_time_ms) == (
        0,
        None,
        None,
    )


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_totals_are_sums_and_means_lie_between_the_hours(catalog: sa.Engine, counts: Sequence[tuple[int, int]]) -> None:
    with catalog.connect() as connection, connection.begin() as undone:
        for ago, (completed, failed) in enumerate(counts, start=1):
            store(connection, ago, processed=completed + failed, failed=failed, ms=100 * ago)
        totals = history(connection, len(counts)).totals
        undone.rollback()
    assert totals.jobs_processed == sum(map(sum, counts))
    assert totals.jobs_failed == sum(failed for _, failed in counts)
    worked = [100 * ago for ago, (completed, _) in enumerate(counts, start=1) if completed]
    if worked:
        assert totals.avg_processing_time_ms is not None
        assert min(worked) <= totals.avg_processing_time_ms <= max(worked)
    else:
        assert totals.avg_processing_time_ms is None
