"""What operators and dashboards look at: health by component, metrics, the queue, past hours."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from cdn_pipeline.api.caching import NEVER_CACHED
from cdn_pipeline.api.dashboard import Dashboard, dashboard
from cdn_pipeline.api.health import answer, documented_unhealthy
from cdn_pipeline.api.measured import VERSION, Check, Measured, worst_of
from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.queue_status import ProcessingStatus, QueueStatus, processing_status, queue_status
from cdn_pipeline.api.serving import Served
from cdn_pipeline.api.statistics import Statistics, statistics
from cdn_pipeline.observe.health import Health, PartName
from cdn_pipeline.observe.history import history
from cdn_pipeline.observe.overview import Overview
from cdn_pipeline.observe.parts import Part, parts, whole
from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.vitals import Vitals

router = APIRouter(prefix="/api/v1/cdn", tags=["monitoring"], dependencies=NEVER_CACHED)

MAX_HOURS = 24 * 90  # statistics are exact for as long as jobs are kept


class QueueStatistics(BaseModel):
    """What the queue holds. Null: not known, because the catalog is away."""

    due: int | None = Field(description="Jobs that somebody could take now.")
    held: int | None = Field(description="Jobs on hold.")
    retry_later: int | None = Field(description="Jobs that wait for their next attempt.")
    oldest_due_seconds: float | None = Field(description="How long the oldest urgent job has been due; null: none is.")


class QueueManager(Check):
    """The queue, who works on it, whom downloads ask, and the catalog that it is in."""

    queue_size: int | None = Field(description="Open jobs but for those on hold; null: not known.")
    processing_jobs: int | None = Field(description="Images that living runs have in hand.")
    uptime_seconds: float = Field(description="Of the process that answers.")
    circuit_breaker_open: bool | None = Field(description="Whether some host is left alone for now.")
    statistics: QueueStatistics


class R2Storage(Check):
    """Both stores, and the disk of local ones."""

    connectivity: Literal["ok", "failed"] = Field(description="Whether both stores answer.")
    bucket_accessible: bool = Field(description="Whether both stores answer with our credentials.")


class ImagePipeline(Check):
    """What became of the images, and of the URLs that are published."""

    jobs_processed: int | None = Field(description="Jobs that ended in the last 24 hours; null: not known.")
    success_rate: float | None = Field(description="In percent, of the last 24 hours; null: nothing was tried.")
    avg_processing_time: float | None = Field(description="In seconds, of the last 24 hours; null: nothing measured.")


class Components(BaseModel):
    """The components of the whole."""

    queue_manager: QueueManager
    r2_storage: R2Storage
    image_pipeline: ImagePipeline


class ComponentCounts(BaseModel):
    """The components by how they are."""

    total_components: int
    healthy_components: int
    degraded_components: int
    unhealthy_components: int


class SystemHealth(BaseModel):
    """How the whole is, by component."""

    status: Health = Field(description="The worst of the components.")
    timestamp: datetime = Field(description="When it was measured.")
    version: str = Field(description="Of the package.")
    components: Components
    metrics: ComponentCounts


@router.get("/health", responses=documented_unhealthy(SystemHealth), summary="How the whole is, by component")
async def get_system_health(response: Response, vitals: Measured) -> SystemHealth:
    """The same measurement as `GET /api/v1/health/cdn`, told by component."""
    found = parts(vitals)
    health = whole(found)
    answer(response, health)
    components = Components(
        queue_manager=_queue_manager(vitals, found),
        r2_storage=_r2_storage(vitals, found),
        image_pipeline=_image_pipeline(vitals, found),
    )
    return SystemHealth(
        status=health,
        timestamp=vitals.at,
        version=VERSION,
        components=components,
        metrics=_counts([components.queue_manager, components.r2_storage, components.image_pipeline]),
    )


def _queue_manager(vitals: Vitals, found: tuple[Part, ...]) -> QueueManager:
    names = (PartName.CATALOG, PartName.QUEUE, PartName.WORKERS, PartName.HOSTS, PartName.SOURCES)
    overview = vitals.overview
    return QueueManager(
        **worst_of(found, *names).model_dump(),
        queue_size=overview.depth if overview else None,
        processing_jobs=vitals.workers.leases if vitals.workers else None,
        uptime_seconds=round(vitals.process.uptime.total_seconds(), 1),
        circuit_breaker_open=bool(overview.shut_hosts) if overview else None,
        statistics=_queue_statistics(overview),
    )


def _queue_statistics(overview: Overview | None) -> QueueStatistics:
    if overview is None:
        return QueueStatistics(due=None, held=None, retry_later=None, oldest_due_seconds=None)
    return QueueStatistics(
        due=overview.due,
        held=overview.held,
        retry_later=overview.retry_later,
        oldest_due_seconds=overview.oldest_due.seconds,
    )


def _r2_storage(vitals: Vitals, found: tuple[Part, ...]) -> R2Storage:
    answered = vitals.objects.answered and vitals.originals.answered
    return R2Storage(
        **worst_of(found, PartName.OBJECTS, PartName.ORIGINALS, PartName.DISK).model_dump(),
        connectivity="ok" if answered else "failed",
        bucket_accessible=answered,
    )


def _image_pipeline(vitals: Vitals, found: tuple[Part, ...]) -> ImagePipeline:
    jobs = vitals.figures.jobs if vitals.figures else None
    mean = jobs.mean_processing_ms if jobs else None
    return ImagePipeline(
        **worst_of(found, PartName.PIPELINE, PartName.DELIVERY, PartName.CACHE).model_dump(),
        jobs_processed=jobs.ended if jobs else None,
        success_rate=percent(vitals.overview.last_day.success_rate) if vitals.overview else None,
        avg_processing_time=mean / 1000 if mean is not None else None,
    )


def _counts(components: list[Check]) -> ComponentCounts:
    statuses = [each.status for each in components]
    return ComponentCounts(
        total_components=len(statuses),
        healthy_components=statuses.count(Health.HEALTHY),
        degraded_components=statuses.count(Health.DEGRADED),
        unhealthy_components=statuses.count(Health.UNHEALTHY),
    )


@router.get("/metrics", summary="Throughput, latency and errors")
async def get_metrics(vitals: Measured) -> Dashboard:
    """The key metrics; null where something cannot be measured or is not configured. `GET /metrics` is Prometheus's."""
    return dashboard(vitals)


def _overview(vitals: Vitals) -> Overview:
    if vitals.overview is None:
        problem = (
            vitals.catalog.problem or vitals.unmeasurable.get("overview") or "it takes long; ask again in a minute"
        )
        raise HTTPException(503, f"The catalog: {problem}")
    return vitals.overview


@router.get("/queue/status", responses=documented(503), summary="The queue, by priority")
async def get_queue_status(vitals: Measured) -> QueueStatus:
    """What is due, in hand, tried again later and on hold; hosts that are left alone; whether deadlines can be kept."""
    return queue_status(_overview(vitals), vitals)


@router.get("/processing-status", responses=documented(503), summary="How far the whole is")
async def get_processing_status(vitals: Measured) -> ProcessingStatus:
    """Images by status, and how many of them are published."""
    return processing_status(_overview(vitals))


@router.get("/statistics", responses=documented(422, 503), summary="Past hours, their trend, and advice")
def get_statistics(
    serving: Served,
    vitals: Measured,
    hours: Annotated[
        int, Query(ge=1, le=MAX_HOURS, description="So many whole hours until the last one that is counted.")
    ] = 24,
) -> Statistics:
    """Hourly counts, their totals against the period before, and the runbook's advice for what stands out."""
    return statistics(serving.read(lambda connection: history(connection, hours)), parts(vitals))
