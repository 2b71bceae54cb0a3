"""The queue's documents: by priority, what is behind breakers, and how far the whole is."""

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.overview import Overview, QueueLine
from cdn_pipeline.observe.shares import percent
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.queue.states import ImageStatus


class Priority(BaseModel):
    """The open jobs of one priority."""

    priority: int = Field(description="1 a user's request, 2 avatars, 4 recent posts, 6 backfill, 10 re-encoding.")
    due: int = Field(description="Jobs that somebody could take now.")
    retry_later: int = Field(description="Jobs that wait for their next attempt.")
    in_hand: int = Field(description="Jobs that runs work on.")
    held: int = Field(description="Jobs on hold.")
    oldest_due_at: datetime | None = Field(description="Since when the oldest has been due.")
    next_attempt_at: datetime | None = Field(description="Of those that are tried again later, the next.")


class OpenBreaker(BaseModel):
    """A host that is left alone for now, and the images behind it."""

    host: str
    failure: FailureKind | None = Field(description="What went wrong there last.")
    opened_at: datetime = Field(description="Since when it is left alone.")
    retry_at: datetime = Field(description="When it may be asked again, by one image.")
    images: int = Field(description="Images that wait for it.")


class Deadlines(BaseModel):
    """Whether images are reached before their URLs expire, at the present rate."""

    waiting: int = Field(description="Images that wait for their download.")
    at_risk: int = Field(description="Those that would have expired when they are reached.")
    images_per_second: float | None = Field(description="Null: too few were downloaded lately to tell.")
    words: str = Field(description="The same in words.")


class QueueStatus(BaseModel):
    """The queue as it is."""

    queue_size: int = Field(description="Open jobs but for those on hold.")
    processing_jobs: int = Field(description="Images that living runs have in hand.")
    due: int = Field(description="Jobs that somebody could take now.")
    held: int = Field(description="Jobs on hold: `POST /api/v1/cdn/queue/restore` lets them go.")
    oldest_due_seconds: float | None = Field(description="How long the oldest urgent job has been due; null: none is.")
    priorities: list[Priority] = Field(description="The most urgent first; only those that have open jobs.")
    circuit_breaker_open: bool = Field(description="Whether some host is left alone for now.")
    circuit_breakers: list[OpenBreaker] = Field(description="The longest open first.")
    deadlines: Deadlines


def queue_status(overview: Overview, vitals: Vitals) -> QueueStatus:
    """Told from the vitals and their overview."""
    feasibility, workers = overview.feasibility, vitals.workers
    return QueueStatus(
        queue_size=overview.depth,
        processing_jobs=workers.leases if workers else overview.in_hand,
        due=workers.due if workers else overview.due,
        held=overview.held,
        oldest_due_seconds=overview.oldest_due.seconds,
        priorities=[_priority(line) for line in overview.queue],
        circuit_breaker_open=bool(overview.shut_hosts),
        circuit_breakers=[
            OpenBreaker(
                host=each.host,
                failure=each.failure,
                opened_at=each.opened_at.astimezone(UTC),
                retry_at=each.retry_at.astimezone(UTC),
                images=each.images,
            )
            for each in overview.shut_hosts
        ],
        deadlines=Deadlines(
            waiting=feasibility.waiting,
            at_risk=feasibility.at_risk,
            images_per_second=None if feasibility.rate is None else round(feasibility.rate, 2),
            words=feasibility.words,
        ),
    )


def _priority(line: QueueLine) -> Priority:
    return Priority(
        priority=line.priority,
        due=line.due,
        retry_later=line.retry_later,
        in_hand=line.in_hand,
        held=line.held,
        oldest_due_at=line.due_since.astimezone(UTC) if line.due_since else None,
        next_attempt_at=line.next_attempt_at.astimezone(UTC) if line.next_attempt_at else None,
    )


class ProcessingStatus(BaseModel):
    """How far the whole is."""

    queued: bool = Field(description="Whether some image is still on its way.")
    total_assets: int = Field(description="Images in the catalog.")
    completed_assets: int = Field(description="Images that are published, whatever became of a later picture of them.")
    completion_percentage: float = Field(description="Their share, in percent, rounded down.", examples=[100.0])
    by_status: dict[ImageStatus, int] = Field(description="Images by where they stand.")
    queue_depth: int = Field(description="Open jobs but for those on hold.")
    images_lost: int = Field(description="Images lost on our watch. It must be 0.")


def processing_status(overview: Overview) -> ProcessingStatus:
    """Told from the overview."""
    return ProcessingStatus(
        queued=overview.depth > 0,
        total_assets=overview.images.total,
        completed_assets=overview.images.published,
        completion_percentage=percent(overview.images.published_share),
        by_status=dict(overview.images.by_status),
        queue_depth=overview.depth,
        images_lost=overview.watch.lost,
    )
