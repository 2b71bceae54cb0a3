"""What operators do over HTTP: look closer, retry, hold the queue. Every write leaves a row in the audit."""

import base64
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, BeforeValidator, Field, StrictBool

from cdn_pipeline.api import erasures
from cdn_pipeline.api.admin import ADMIN, Actor, AdminRoute, Exact
from cdn_pipeline.api.admin_metrics import AdminMetrics, admin_metrics
from cdn_pipeline.api.caching import NEVER_CACHED
from cdn_pipeline.api.measured import Measured
from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.serving import Served
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.failed_jobs import FailedJob, Place, failed_jobs
from cdn_pipeline.observe.unattended import how_to_start
from cdn_pipeline.queue.audit import AuditEntry, latest_actions, note_action
from cdn_pipeline.queue.holds import count_queued, hold_queue, restore_queue
from cdn_pipeline.queue.retrying import TRIED_AGAIN, Retry, RetryAnswer, retry_jobs

router = APIRouter(
    tags=["admin"], route_class=AdminRoute, dependencies=[*ADMIN, *NEVER_CACHED], responses=documented(401, 503)
)
router.include_router(erasures.router)

MAX_RETRIES = 1000  # of one request


def _no_other_type(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError("not a number")
    return value


_AN_INTEGER = BeforeValidator(_no_other_type)  # as JSON Schema has it: 10 and 10.0, but neither "10" nor true

# -- looking closer --


@router.get("/api/v1/admin/cdn/metrics", summary="Everything that is measured")
async def get_admin_metrics(vitals: Measured) -> AdminMetrics:
    """The document of `GET /api/v1/cdn/metrics`, and more."""
    return admin_metrics(vitals)


class FailedJobs(BaseModel):
    """A page of failed jobs."""

    jobs: list[FailedJob] = Field(description="The latest failure first.")
    next_cursor: str | None = Field(description="For the next page; null: this is the last one.")
    advice: dict[str, str] = Field(description="What to do about each kind on this page.")


def _cursor(place: Place) -> str:
    return base64.urlsafe_b64encode(f"{place.failed_at.isoformat()} {place.id}".encode()).decode()


def _place(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    try:
        failed_at, _, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        place: Place | None = Place(datetime.fromisoformat(failed_at), UUID(job_id))
    except ValueError:
        place = None
    if place is None or place.failed_at.tzinfo is None:
        raise HTTPException(404, "There is no such page: begin without a cursor.")
    return place


@router.get("/api/v1/admin/cdn/failed-jobs", responses=documented(404, 422), summary="Failed jobs of the last week")
def get_failed_jobs(
    serving: Served,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many on a page.")] = 100,
    kind: Annotated[FailureKind | None, Query(description="Only this kind of failure.")] = None,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")] = None,
) -> FailedJobs:
    """Without source URLs, which are signed: `cdn-pipeline explain ID` tells an image's whole story."""
    read = partial(failed_jobs, collection=serving.collection, limit=limit + 1, kind=kind, after=_place(cursor))
    found = serving.read(read)
    page = list(found[:limit])
    return FailedJobs(
        jobs=page,
        next_cursor=_cursor(page[-1].place) if len(found) > limit else None,
        advice={kind: kind.advice for job in page if (kind := FailureKind.of(job.kind))},
    )


@router.get("/api/v1/admin/cdn/audit", responses=documented(422), summary="Who did what")
def get_audit(
    serving: Served, limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100
) -> list[AuditEntry]:
    """What operators did through the API, the latest first."""
    return list(serving.read(partial(latest_actions, limit=limit)))


# -- retries --


UrgentPriority = Annotated[int, Field(ge=1, le=2), _AN_INTEGER]


class RetryRequest(Exact):
    """Which jobs are to be tried again."""

    job_ids: list[UUID] = Field(
        min_length=1, max_length=MAX_RETRIES, description="The `id`s of `GET /api/v1/admin/cdn/failed-jobs`."
    )
    priority: UrgentPriority = Field(default=2, description="1 before everything else, 2 with the avatars.")


class RetryResult(BaseModel):
    """What became of each job."""

    counts: dict[RetryAnswer, int] = Field(description="Jobs by what became of them.")
    jobs: list[Retry] = Field(description="In the order in which they were asked for, each once.")
    hint: str | None = Field(
        description="Where nothing starts a run for what is due now: what to do. Null: the sensor asks for one."
    )


@router.post("/api/v1/admin/cdn/retry-failed", responses=documented(400, 413, 422), summary="Try failed jobs again")
def retry_failed_jobs(serving: Served, request: RetryRequest, actor: Actor = "admin") -> RetryResult:
    """Opens a job of type `retry` for each image, with all its attempts before it; from the stored original if it can.

    `reopened` and `hurried` jobs are due now. `held` ones stay on hold: `POST /api/v1/cdn/queue/restore` lets them go.
    The others say why there is nothing to do.
    """

    def retry(connection: sa.Connection) -> RetryResult:
        found = list(retry_jobs(connection, serving.collection, request.job_ids, priority=request.priority))
        done = [each for each in found if each.answer in TRIED_AGAIN]
        note_action(
            connection,
            actor,
            "retry-failed",
            details={
                "job_ids": [str(each.job_id) for each in done],
                "asked": len(found),
                "priority": request.priority,
            },
            affected=len(done),
        )
        answers = [each.answer for each in found]
        return RetryResult(
            counts={answer: answers.count(answer) for answer in RetryAnswer if answer in answers},
            jobs=found,
            hint=how_to_start(connection, {each.shard for each in done if each.shard}),
        )

    return serving.administer(retry)


# -- holding the queue --

Shard = Annotated[str, Field(pattern="^[0-3][0-9a-f]$")]
PriorityNumber = Annotated[int, Field(ge=1, le=10), _AN_INTEGER]


class QueueSelection(Exact):
    """Which queued jobs; without anything: all."""

    priorities: list[PriorityNumber] | None = Field(default=None, description="Only these.", examples=[[10]])
    shards: list[Shard] | None = Field(default=None, max_length=len(SHARDS), description="Only these, of `00` to `3f`.")

    @property
    def selected(self) -> dict[str, Any]:
        """As the audit keeps it."""
        return {"priorities": self.priorities, "shards": self.shards}


class ClearRequest(QueueSelection):
    """Which queued jobs are to be put on hold."""

    dry_run: StrictBool = Field(default=False, description="Only count them.")


class Held(BaseModel):
    """What was put on hold. Nothing is lost."""

    held: int = Field(description="Jobs that were put on hold; with `dry_run`, that would be.")
    dry_run: bool = Field(description="Whether they were only counted.")
    restore: str = Field(description="How to let them go.")


class Restored(BaseModel):
    """What was let go."""

    restored: int = Field(description="Jobs that were let go.")


@router.post("/api/v1/cdn/queue/clear", responses=documented(400, 413, 422), summary="Put queued jobs on hold")
def clear_queue(serving: Served, request: ClearRequest, actor: Actor = "admin") -> Held:
    """Takes queued jobs out of every run's reach without losing them. What runs have in hand is finished."""
    restore = "POST /api/v1/cdn/queue/restore with the same `priorities` and `shards`, or `cdn-pipeline queue restore`"
    if request.dry_run:
        count = serving.read(
            partial(
                count_queued,
                collection=serving.collection,
                shards=request.shards,
                priorities=request.priorities,
            )
        )
        return Held(held=count, dry_run=True, restore=restore)

    def hold(connection: sa.Connection) -> int:
        held = hold_queue(connection, serving.collection, shards=request.shards, priorities=request.priorities)
        note_action(connection, actor, "queue-clear", details=request.selected, affected=held)
        return held

    return Held(held=serving.administer(hold), dry_run=False, restore=restore)


@router.post("/api/v1/cdn/queue/restore", responses=documented(400, 413, 422), summary="Let held jobs go")
def restore_held_jobs(serving: Served, request: QueueSelection, actor: Actor = "admin") -> Restored:
    """They are due when they would have been, or now. Jobs of a paused rollout stay on hold."""

    def let_go(connection: sa.Connection) -> int:
        restored = restore_queue(connection, serving.collection, shards=request.shards, priorities=request.priorities)
        note_action(connection, actor, "queue-restore", details=request.selected, affected=restored)
        return restored

    return Restored(restored=serving.administer(let_go))
