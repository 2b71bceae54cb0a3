"""The hours of a period against those of the period before it, from `cdn_processing_stats`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.engine.tally import NOT_IN_RATE
from cdn_pipeline.observe.stats import HOUR, HourStats, latest_hours, stored_between


@dataclass(frozen=True, slots=True)
class Totals:
    """Hours taken together: sums; means weighted by the jobs they were taken of; the highest depth of the queue."""

    hours: int  # that are stored
    jobs_processed: int
    jobs_failed: int
    success_rate: float | None  # 0 to 1, as of one hour
    avg_processing_time_ms: int | None
    avg_download_time_ms: int | None
    avg_upload_time_ms: int | None
    total_bytes_processed: int
    peak_queue_depth: int
    worker_utilization_percent: float | None


_GROWS_WITH_HOURS = frozenset({"jobs_processed", "jobs_failed", "total_bytes_processed", "peak_queue_depth"})


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure of the period, and of the one before; `change_percent` is None where there is nothing to compare."""

    value: float | None
    before: float | None

    @property
    def change_percent(self) -> float | None:
        """By how much it grew (or shrank, if negative)."""
        if self.value is None or not self.before:
            return None
        return 100 * (self.value - self.before) / self.before


@dataclass(frozen=True, slots=True)
class History:
    """The stored hours between two moments, the earliest first; failures of that time by kind."""

    start: datetime
    end: datetime
    hours: Sequence[HourStats]
    totals: Totals
    before: Totals
    failures: Mapping[str, int]

    @property
    def trends(self) -> Mapping[str, Trend]:
        """Every figure of the totals against the period before."""
        names = [name for name in Totals.__slots__ if name != "hours"]
        return {name: Trend(getattr(self.totals, name), self._before(name)) for name in names}

    def _before(self, name: str) -> float | None:
        """None where more hours alone would be growth, or fewer a fall."""
        comparable = self.before.hours > 0 and (name not in _GROWS_WITH_HOURS or self.before.hours == self.totals.hours)
        value: float | None = getattr(self.before, name)
        return value if comparable else None


def history(connection: sa.Connection, hours: int) -> History:
    """So many hours until the last one that is stored, and as many before.

    An hour is stored some minutes after its end: until then a period that reached to the clock's last hour would always
    be one hour short.
    """
    latest = latest_hours(connection, 1)
    end = latest[0].start + HOUR if latest else _this_hour(connection)
    start = end - hours * HOUR
    stored = stored_between(connection, start - timedelta(hours=hours), end)
    within = [each for each in stored if each.start >= start]
    earlier = [each for each in stored if each.start < start]
    return History(start, end, within, _totals(within), _totals(earlier), _failures(within))


def _this_hour(connection: sa.Connection) -> datetime:
    return catalog_time(connection).astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _failures(hours: Sequence[HourStats]) -> Mapping[str, int]:
    failures = Counter[str]()
    for each in hours:
        failures.update(each.error_categories)
    return dict(failures.most_common())


def _totals(hours: Sequence[HourStats]) -> Totals:
    processed = sum(each.jobs_processed for each in hours)
    failed = sum(each.jobs_failed for each in hours)
    judged = processed - sum(count for kind, count in _failures(hours).items() if kind in NOT_IN_RATE)
    return Totals(
        hours=len(hours),
        jobs_processed=processed,
        jobs_failed=failed,
        success_rate=(processed - failed) / judged if judged else None,
        avg_processing_time_ms=_mean((each.avg_processing_time_ms, each.jobs_completed) for each in hours),
        avg_download_time_ms=_mean((each.avg_download_time_ms, each.jobs_processed) for each in hours),
        avg_upload_time_ms=_mean((each.avg_upload_time_ms, each.jobs_processed) for each in hours),
        total_bytes_processed=sum(each.total_bytes_processed for each in hours),
        peak_queue_depth=max((each.peak_queue_depth for each in hours), default=0),
        worker_utilization_percent=_mean((each.worker_utilization_percent, 1) for each in hours),
    )


def _mean(weighted: Iterator[tuple[int, int]]) -> int | None:
    pairs = list(weighted)
    weight = sum(count for _, count in pairs)
    return round(sum(value * count for value, count in pairs) / weight) if weight else None
