"""The operators' document: the dashboard's, and everything that it is told from."""

from datetime import datetime

from pydantic import BaseModel, Field

from cdn_pipeline.api.dashboard import Dashboard, dashboard
from cdn_pipeline.api.queue_status import QueueStatus, queue_status
from cdn_pipeline.observe.overview import FailureLine, RunLine
from cdn_pipeline.observe.probes import Delivery
from cdn_pipeline.observe.storage import Storage
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import Disk, Process, Vitals
from cdn_pipeline.observe.workers import Workers


class WorkersAtWork(BaseModel):
    """Who works, and what there is to do."""

    runs: int = Field(description="Runs that live, with work in hand or not.")
    leases: int = Field(description="Images that they have in hand.")
    due: int = Field(description="Jobs that somebody could take now.")
    idle_seconds: float | None = Field(
        description="How long work has been due while nobody had any in hand; null: somebody has, or nothing is due."
    )


class ProcessFigures(BaseModel):
    """The process that answers, and the machine it runs on."""

    started_at: datetime
    resident_bytes: int = Field(description="Memory.")
    cpu_seconds: float = Field(description="User and system, since its start.")
    threads: int
    load: float = Field(description="Of the machine: processes that want to run, mean of a minute.")


class AdminMetrics(Dashboard):
    """The key metrics, and everything that they are told from."""

    queue: QueueStatus | None = Field(description="Null: the catalog is away.")
    workers: WorkersAtWork | None = Field(description="Null: the catalog is away.")
    runs: list[RunLine] = Field(description="Runs that have not ended; one that does not live was killed.")
    failures: list[FailureLine] = Field(description="Images that are not completed, by kind of failure.")
    images_lost: int | None = Field(description="Images lost on our watch. It must be 0.")
    images_arrived_dead: int | None = Field(description="Images whose every URL had expired before we saw it.")
    storage: Storage | None = Field(description="Null: not known.")
    delivery: Delivery | None = Field(description="The latest probes of published URLs; null: none yet.")
    traffic: Traffic | None = Field(description="Cloudflare's figures; null: not configured.")
    disk: Disk | None = Field(description="Of local stores.")
    process: ProcessFigures


def admin_metrics(vitals: Vitals) -> AdminMetrics:
    """Told from the vitals."""
    overview = vitals.overview
    return AdminMetrics(
        **dict(dashboard(vitals)),
        queue=queue_status(overview, vitals) if overview else None,
        workers=_workers(vitals.workers) if vitals.workers else None,
        runs=list(overview.runs) if overview else [],
        failures=list(overview.failures) if overview else [],
        images_lost=overview.watch.lost if overview else None,
        images_arrived_dead=overview.watch.arrived_dead if overview else None,
        storage=vitals.storage,
        delivery=vitals.delivery,
        traffic=vitals.traffic,
        disk=vitals.disk,
        process=_process(vitals.process),
    )


def _workers(workers: Workers) -> WorkersAtWork:
    idle = workers.idle_for.total_seconds() if workers.idle_for is not None else None
    return WorkersAtWork(runs=workers.runs, leases=workers.leases, due=workers.due, idle_seconds=idle)


def _process(process: Process) -> ProcessFigures:
    return ProcessFigures(**{name: getattr(process, name) for name in ProcessFigures.model_fields})
