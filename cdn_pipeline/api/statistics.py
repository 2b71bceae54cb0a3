"""The document of past hours: each hour, the totals, the trend against the period before, and what to do."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.health import Health
from cdn_pipeline.observe.history import History, Totals, Trend
from cdn_pipeline.observe.parts import RUNBOOK, Part
from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.stats import HourStats

_SHARE_THAT_STANDS_OUT = 0.02  # of the jobs of the period, by one kind of failure


class Hour(BaseModel):
    """What was counted of an hour (UTC)."""

    start: datetime
    jobs_processed: int = Field(description="Jobs that ended in it.")
    jobs_failed: int = Field(description="Those of them that failed.")
    success_rate: float | None = Field(description="In percent; null: nothing to judge.")
    avg_processing_time_ms: int = Field(description="Download, transcode and upload.")
    avg_download_time_ms: int
    avg_upload_time_ms: int
    total_bytes_processed: int = Field(description="Downloaded.")
    peak_queue_depth: int = Field(description="The most jobs that were open at once.")
    worker_utilization_percent: int = Field(description="The share of the hour in which any run had an image in hand.")
    error_categories: dict[str, int] = Field(description="Failed jobs by kind of failure.")


class PeriodTotals(BaseModel):
    """All hours together: sums, means over the jobs, the highest depth of the queue."""

    hours: int = Field(description="Hours that are counted; fewer than were asked for where some are missing.")
    jobs_processed: int
    jobs_failed: int
    success_rate: float | None
    avg_processing_time_ms: int | None
    avg_download_time_ms: int | None
    avg_upload_time_ms: int | None
    total_bytes_processed: int
    peak_queue_depth: int
    worker_utilization_percent: float | None


class FigureTrend(BaseModel):
    """A figure against the period of the same length before; null where there is nothing to compare."""

    value: float | None = Field(description="Of the period.")
    before: float | None = Field(
        description="Of the period before; null for sums and peaks if it has more or fewer hours that are counted."
    )
    change_percent: float | None = Field(description="From then to now.", examples=[-12.5])


class Recommendation(BaseModel):
    """Something that stands out, and the runbook's advice."""

    subject: str = Field(description="A kind of failure, or a part that is not well.", examples=["source_url_404"])
    words: str = Field(description="What stands out.")
    advice: str | None = Field(
        description="What to do; null: a kind of failure that another version of the code knows."
    )
    runbook: str = Field(description="The section of the runbook to read.")


class Statistics(BaseModel):
    """The hours of a period, from hourly counts; the hour that runs is not among them."""

    start: datetime = Field(description="Of the first hour.")
    end: datetime = Field(description="Of the last hour that is counted: its end.")
    hours: list[Hour] = Field(description="The earliest first.")
    totals: PeriodTotals
    trends: dict[str, FigureTrend] = Field(description="By the names of the totals.")
    recommendations: list[Recommendation]


def statistics(history: History, found: tuple[Part, ...]) -> Statistics:
    """Told from the stored hours, and from how the parts are now."""
    return Statistics(
        start=history.start,
        end=history.end,
        hours=[_hour(each) for each in history.hours],
        totals=_totals(history.totals),
        trends={name: _trend(name, trend) for name, trend in history.trends.items()},
        recommendations=[*_of_parts(found), *_of_failures(history)],
    )


def _hour(stats: HourStats) -> Hour:
    return Hour(
        start=stats.start,
        jobs_processed=stats.jobs_processed,
        jobs_failed=stats.jobs_failed,
        success_rate=percent(stats.success_rate),
        avg_processing_time_ms=stats.avg_processing_time_ms,
        avg_download_time_ms=stats.avg_download_time_ms,
        avg_upload_time_ms=stats.avg_upload_time_ms,
        total_bytes_processed=stats.total_bytes_processed,
        peak_queue_depth=stats.peak_queue_depth,
        worker_utilization_percent=stats.worker_utilization_percent,
        error_categories=dict(stats.error_categories),
    )


def _totals(totals: Totals) -> PeriodTotals:
    values: dict[str, Any] = {name: getattr(totals, name) for name in PeriodTotals.model_fields}
    return PeriodTotals(**{**values, "success_rate": percent(totals.success_rate)})


def _trend(name: str, trend: Trend) -> FigureTrend:
    value, before, change = trend.value, trend.before, trend.change_percent
    if name == "success_rate":
        value, before = percent(value), percent(before)
    return FigureTrend(value=value, before=before, change_percent=None if change is None else round(change, 1))


def _of_parts(found: tuple[Part, ...]) -> Iterator[Recommendation]:
    for part in found:
        if part.health is not Health.HEALTHY:
            yield Recommendation(
                subject=part.name, words=part.words, advice=part.first, runbook=f"{RUNBOOK}#{part.section}"
            )


def _of_failures(history: History) -> Iterator[Recommendation]:
    for name, count in history.failures.items():
        kind = FailureKind.of(name)
        if count / history.totals.jobs_processed >= _SHARE_THAT_STANDS_OUT:
            yield Recommendation(
                subject=name,
                words=f"{count} of {history.totals.jobs_processed} jobs failed with {name}",
                advice=kind.advice if kind else None,
                runbook=f"{RUNBOOK}#failure-kinds",
            )
