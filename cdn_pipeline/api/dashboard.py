"""The dashboard's document: what is processed, stored, how fast, and what goes wrong."""

from pydantic import BaseModel, Field

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.figures import ErrorCount
from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.vitals import Vitals

_SHOWN_ERRORS = 10


class ProcessingMetrics(BaseModel):
    """What became of jobs. Null: not known, because the catalog is away."""

    queue_depth: int | None = Field(description="Open jobs but for those on hold.")
    processing_rate_per_hour: int | None = Field(description="Jobs that ended within the last hour.")
    success_rate_24h: float | None = Field(
        description="In percent: completed of completed, failed and still retrying, each image once. Null: none tried.",
        examples=[98.5],
    )
    average_processing_time_ms: int | None = Field(description="Download, transcode and upload, of the last 24 hours.")
    failed_jobs_24h: int | None = Field(description="For good, or until a fresh URL comes.")


class StorageMetrics(BaseModel):
    """What is stored, and what is asked of it. Null: not known, or Cloudflare is not configured."""

    total_assets: int | None = Field(description="Images.")
    storage_used_gb: float | None = Field(description="Of renditions and originals, in units of 10^9 bytes.")
    monthly_requests: int | None = Field(description="Of the CDN, in the last 30 days.")
    cache_hit_ratio: float | None = Field(description="Of the CDN, in percent, in the last 24 hours.", examples=[99.1])


class PerformanceMetrics(BaseModel):
    """How long things take, in the last 24 hours. Null: nothing was measured."""

    avg_download_time_ms: int | None = Field(description="Mean of a job's downloads.")
    avg_upload_time_ms: int | None = Field(description="Mean of a job's uploads.")
    p95_processing_time_ms: int | None = Field(description="Of all stages together: 95 % of jobs took no longer.")
    worker_utilization: float | None = Field(
        description="In percent: the share of the last hour in which any run had an image in hand.", examples=[75.0]
    )


class ErrorType(BaseModel):
    """A kind of failure."""

    error: str = Field(description="Its name.", examples=["source_url_expired"])
    count: int = Field(description="Jobs that failed with it in the last 24 hours, or are being retried after it.")
    advice: str | None = Field(description="What to do about it; null: another version of the code knows this kind.")


class ErrorAnalysis(BaseModel):
    """What goes wrong, in the last 24 hours."""

    top_error_types: list[ErrorType] = Field(description=f"At most {_SHOWN_ERRORS}, the most frequent first.")
    retry_success_rate: float | None = Field(
        description="In percent: of the jobs that took more than one attempt, those that were completed.",
        examples=[85.0],
    )
    source_url_failures: float | None = Field(
        description="In percent: of the jobs that ended, those whose source URL was expired, gone or refused.",
        examples=[3.2],
    )


class Dashboard(BaseModel):
    """The key metrics."""

    processing_metrics: ProcessingMetrics
    storage_metrics: StorageMetrics
    performance_metrics: PerformanceMetrics
    error_analysis: ErrorAnalysis


def dashboard(vitals: Vitals) -> Dashboard:
    """Told from the vitals."""
    jobs = vitals.figures.jobs if vitals.figures else None
    overview, traffic = vitals.overview, vitals.traffic
    return Dashboard(
        processing_metrics=ProcessingMetrics(
            queue_depth=overview.depth if overview else None,
            processing_rate_per_hour=jobs.ended_last_hour if jobs else None,
            success_rate_24h=percent(overview.last_day.success_rate) if overview else None,
            average_processing_time_ms=jobs.mean_processing_ms if jobs else None,
            failed_jobs_24h=jobs.failed if jobs else None,
        ),
        storage_metrics=StorageMetrics(
            total_assets=overview.images.total if overview else None,
            storage_used_gb=round(vitals.storage.bytes / 1e9, 3) if vitals.storage else None,
            monthly_requests=traffic.requests_30d if traffic else None,
            cache_hit_ratio=percent(traffic.hit_ratio) if traffic else None,
        ),
        performance_metrics=PerformanceMetrics(
            avg_download_time_ms=jobs.mean_download_ms if jobs else None,
            avg_upload_time_ms=jobs.mean_upload_ms if jobs else None,
            p95_processing_time_ms=jobs.p95_processing_ms if jobs else None,
            worker_utilization=percent(vitals.figures.utilization) if vitals.figures else None,
        ),
        error_analysis=_error_analysis(vitals),
    )


def _error_analysis(vitals: Vitals) -> ErrorAnalysis:
    figures = vitals.figures
    return ErrorAnalysis(
        top_error_types=[_error_type(each) for each in (figures.errors[:_SHOWN_ERRORS] if figures else ())],
        retry_success_rate=percent(figures.jobs.retry_success_rate) if figures else None,
        source_url_failures=percent(figures.jobs.source_url_failure_rate) if figures else None,
    )


def _error_type(counted: ErrorCount) -> ErrorType:
    kind = FailureKind.of(counted.kind)
    return ErrorType(error=counted.kind, count=counted.jobs, advice=kind.advice if kind else None)
