"""Health for load balancers and for people: alive, ready, and how each part is."""

from datetime import UTC, datetime
from typing import Any, Literal

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from cdn_pipeline.api.caching import NEVER_CACHED
from cdn_pipeline.api.measured import VERSION, Check, Measured, worst_of
from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.serving import Served
from cdn_pipeline.observe.health import Health, PartName
from cdn_pipeline.observe.parts import Part, parts, whole
from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.vitals import Vitals

router = APIRouter(tags=["health"], dependencies=NEVER_CACHED)

_READINESS_THREADS = CapacityLimiter(4)  # of its own: whoever asks for the health waits longer


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The process can answer what it is asked."""

    status: Literal["ready"]


class StorageCheck(Check):
    """Both stores, and the disk of local ones."""

    latency_ms: float | None = Field(description="Of a read from the store of renditions; null: no answer.")
    originals_latency_ms: float | None = Field(description="Of a read from the store of originals.")


class CatalogCheck(Check):
    """Our Postgres."""

    latency_ms: float | None = Field(description="Of the shortest query; null: no answer.")


class QueueCheck(Check):
    """The queue, the hosts that downloads ask, and how far source rows were read."""

    depth: int | None = Field(description="Open jobs but for those on hold; null: not known.")
    oldest_due_seconds: float | None = Field(description="How long the oldest urgent job has been due; null: none is.")


class WorkersCheck(Check):
    """Who works, and whether Dagster's daemon ticks."""

    active_count: int | None = Field(description="Images in hand by runs that live; null: not known.")
    runs: int | None = Field(description="Runs that live, with work in hand or not.")
    due: int | None = Field(description="Jobs that somebody could take now.")
    daemon_seen_at: datetime | None = Field(description="The last tick of Dagster's sensors; null: not seen yet.")


class PipelineCheck(Check):
    """What became of the images."""

    success_rate_24h: float | None = Field(description="In percent; null: nothing was tried.")
    images_lost: int | None = Field(description="Images lost on our watch. It must be 0.")


class DeliveryCheck(Check):
    """Published URLs as strangers get them."""

    cache_hit_ratio: float | None = Field(description="Of the CDN, in percent, of 24 hours; null: not configured.")
    probed_at: datetime | None = Field(description="When URLs were last probed; null: never.")
    broken: int | None = Field(description="Of the probed URLs, those that do not give their picture.")
    p95_ms: float | None = Field(description="To the first byte, on an open connection.")


class Checks(BaseModel):
    """The parts of the whole."""

    r2_storage: StorageCheck
    processing_queue: QueueCheck
    workers: WorkersCheck
    cdn_delivery: DeliveryCheck
    catalog: CatalogCheck
    pipeline: PipelineCheck


class SystemInfo(BaseModel):
    """The process that answers, and what the system has done so far."""

    version: str = Field(description="Of the package.")
    uptime_hours: float = Field(description="Of the process that answers.")
    total_processed: int | None = Field(description="Images that were published; null: not known.")
    last_maintenance: datetime | None = Field(description="The last time that all source rows were read.")


class CdnHealth(BaseModel):
    """How the whole is, part by part."""

    status: Health = Field(description="The worst of the parts.")
    checked_at: datetime = Field(description="When it was measured.")
    checks: Checks
    system_info: SystemInfo


@router.get("/livez", summary="Whether the process answers")
async def livez() -> Alive:
    """Looks at nothing: a process that is restarted because Postgres is away would only be away as well."""
    return Alive(status="alive")


@router.get("/readyz", responses=documented(503), summary="Whether it can answer what it is asked")
async def readyz(serving: Served) -> Ready:
    """503 while the catalog does not answer: that is all that the media routes need. Answers within a second."""
    problem = await run_sync(serving.monitor.catalog_problem, limiter=_READINESS_THREADS)
    if problem is not None:
        raise HTTPException(503, f"The catalog: {problem}")
    return Ready(status="ready")


def documented_unhealthy(document: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of the document that an unhealthy system answers with."""
    words = "Something is unhealthy: the same document, which says what it is and what to do first."
    return {503: {"model": document, "description": words}}


def answer(response: Response, health: Health) -> None:
    """200 for healthy and degraded, 503 for unhealthy."""
    response.status_code = 503 if health is Health.UNHEALTHY else 200


@router.get(
    "/api/v1/health/cdn",
    responses=documented_unhealthy(CdnHealth),
    summary="How the whole is, part by part",
)
async def get_cdn_health(response: Response, vitals: Measured) -> CdnHealth:
    """Measured, not assumed: a few seconds old at most. Every part that is not well says what to do first."""
    found = parts(vitals)
    health = whole(found)
    answer(response, health)
    return CdnHealth(
        status=health, checked_at=vitals.at, checks=_checks(vitals, found), system_info=_system_info(vitals)
    )


Parts = tuple[Part, ...]


def _checks(vitals: Vitals, found: Parts) -> Checks:
    return Checks(
        r2_storage=_storage(vitals, found),
        processing_queue=_queue(vitals, found),
        workers=_workers(vitals, found),
        cdn_delivery=_delivery(vitals, found),
        catalog=CatalogCheck(
            **worst_of(found, PartName.CATALOG).model_dump(), latency_ms=_rounded(vitals.catalog.milliseconds)
        ),
        pipeline=_pipeline(vitals, found),
    )


def _storage(vitals: Vitals, found: Parts) -> StorageCheck:
    return StorageCheck(
        **worst_of(found, PartName.OBJECTS, PartName.ORIGINALS, PartName.DISK).model_dump(),
        latency_ms=_rounded(vitals.objects.milliseconds),
        originals_latency_ms=_rounded(vitals.originals.milliseconds),
    )


def _queue(vitals: Vitals, found: Parts) -> QueueCheck:
    return QueueCheck(
        **worst_of(found, PartName.QUEUE, PartName.HOSTS, PartName.SOURCES).model_dump(),
        depth=vitals.overview.depth if vitals.overview else None,
        oldest_due_seconds=vitals.overview.oldest_due.seconds if vitals.overview else None,
    )


def _workers(vitals: Vitals, found: Parts) -> WorkersCheck:
    return WorkersCheck(
        **worst_of(found, PartName.WORKERS).model_dump(),
        active_count=vitals.workers.leases if vitals.workers else None,
        runs=vitals.workers.runs if vitals.workers else None,
        due=vitals.workers.due if vitals.workers else None,
        daemon_seen_at=vitals.heartbeat,
    )


def _delivery(vitals: Vitals, found: Parts) -> DeliveryCheck:
    probes = vitals.delivery
    return DeliveryCheck(
        **worst_of(found, PartName.DELIVERY, PartName.CACHE).model_dump(),
        cache_hit_ratio=percent(vitals.traffic.hit_ratio) if vitals.traffic else None,
        probed_at=probes.probed_at.astimezone(UTC) if probes else None,
        broken=probes.broken if probes else None,
        p95_ms=_rounded(probes.warm.p95) if probes and probes.warm else None,
    )


def _pipeline(vitals: Vitals, found: Parts) -> PipelineCheck:
    overview = vitals.overview
    return PipelineCheck(
        **worst_of(found, PartName.PIPELINE).model_dump(),
        success_rate_24h=percent(overview.last_day.success_rate) if overview else None,
        images_lost=overview.watch.lost if overview else None,
    )


def _system_info(vitals: Vitals) -> SystemInfo:
    overview = vitals.overview
    scanned = overview.watermarks.last_full_scan if overview else None
    return SystemInfo(
        version=VERSION,
        uptime_hours=round(vitals.process.uptime.total_seconds() / 3600, 2),
        total_processed=overview.images.published if overview else None,
        last_maintenance=scanned.astimezone(UTC) if scanned else None,
    )


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
