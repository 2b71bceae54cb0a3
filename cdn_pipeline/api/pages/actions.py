"""The buttons. Each does what a route of the API does, through the same function, and says what it came to."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from uuid import UUID

import sqlalchemy as sa
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Response

from cdn_pipeline.api.admin_routes import (
    ClearRequest,
    QueueSelection,
    RetryRequest,
    clear_queue,
    restore_held_jobs,
    retry_failed_jobs,
)
from cdn_pipeline.api.pages.sessions import Message
from cdn_pipeline.api.pages.visits import Form, OperatorsForm, PageRoute, Visit, Visited
from cdn_pipeline.api.pages.words import number
from cdn_pipeline.api.refresh import Run, post_refresh
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.unattended import how_to_start
from cdn_pipeline.queue.audit import note_action
from cdn_pipeline.queue.reopen import REPAIR_PRIORITY
from cdn_pipeline.queue.retrying import TRIED_AGAIN, RetryAnswer
from cdn_pipeline.upkeep.retry import failing_images, retry_images

router = APIRouter(prefix="/actions", route_class=PageRoute, include_in_schema=False)

_MOST_RETRIED = 20_000  # for one press of a button: 20 s

_LATER = "The numbers below follow within half a minute."  # overviews are counted for all who look, now and then

_WORDS: Mapping[RetryAnswer, str] = {
    RetryAnswer.REOPENED: "opened again and due now",
    RetryAnswer.HURRIED: "due now instead of later",
    RetryAnswer.HELD: "on hold, and stay so until they are let go",
    RetryAnswer.OPEN: "already due or in hand",
    RetryAnswer.COMPLETED: "already published",
    RetryAnswer.WAITS_FOR_URL: "left as they are, because their source URL has expired: a fresh one heals them",
    RetryAnswer.ERASED: "erased meanwhile",
    RetryAnswer.UNKNOWN: "not known any more",
}


@router.post("/retry")
def post_retry(visit: Visited, form: OperatorsForm) -> Response:
    """Tries one job's image again."""
    request = RetryRequest(job_ids=[_uuid(form, "job_id")], priority=REPAIR_PRIORITY)
    result = retry_failed_jobs(visit.serving, request, _actor(visit))
    return _back(visit, form, _told(result.counts, result.hint))


@router.post("/retry-kind")
def post_retry_kind(visit: Visited, form: OperatorsForm) -> Response:
    """Tries all images again whose last failure is of one kind: those that `cdn-pipeline retry --kind` tries."""
    serving, kind = visit.serving, _kind(form)
    image_ids = serving.read(partial(failing_images, collection=serving.collection, kind=kind))
    counts, shards, more = Counter[RetryAnswer](), set[str](), ""
    for images in retry_images(serving.operators, serving.collection, image_ids, actor=_actor(visit), dry_run=False):
        counts.update(image.answer for image in images)
        shards |= {image.shard for image in images if image.answer in TRIED_AGAIN}
        if sum(counts[answer] for answer in TRIED_AGAIN) >= _MOST_RETRIED:
            more = " There may be more: so many are tried at once."
            break
    told = _told(counts, serving.read(partial(how_to_start, shards=shards)))
    return _back(visit, form, Message(f"{told.words}{more}", told.is_bad))


@router.post("/hold")
def post_hold(visit: Visited, form: OperatorsForm) -> Response:
    """Puts queued jobs on hold, of one priority or of all."""
    held = clear_queue(visit.serving, ClearRequest(priorities=_priorities(form)), _actor(visit)).held
    return _back(visit, form, Message(f"Jobs put on hold: {number(held)}. Nothing is lost. {_LATER}"))


@router.post("/restore")
def post_restore(visit: Visited, form: OperatorsForm) -> Response:
    """Lets held jobs go, of one priority or of all."""
    restored = restore_held_jobs(visit.serving, QueueSelection(priorities=_priorities(form)), _actor(visit)).restored
    return _back(visit, form, Message(f"Jobs let go: {number(restored)}. {_LATER}"))


@router.post("/refresh")
async def post_refresh_profile(visit: Visited, form: OperatorsForm) -> Response:
    """Has a profile's pictures fetched again."""
    profile_id = _uuid(form, "profile_id")
    try:
        refresh = await post_refresh(visit.serving, profile_id)
    except HTTPException as error:
        if error.status_code not in (404, 429):
            raise
        return _back(visit, form, Message(str(error.detail), is_bad=True))
    if refresh.status == "already_queued":
        who = refresh.run.hint or "A run does it."
        return _back(visit, form, Message(f"A refresh of this profile is open already. {who}"))
    await run_sync(visit.serving.write, partial(_note_refresh, actor=_actor(visit), profile_id=profile_id))
    return _back(visit, form, Message(_refreshed(refresh.run)))


def _refreshed(run: Run) -> str:
    if run.hint:
        return f"The profile is fetched again by the next run. {run.hint}"
    who = "a run was started for it" if run.started_by == "dagster" else "the sensor asks for a run in a minute"
    return f"The profile is fetched again: {who}."


def _note_refresh(connection: sa.Connection, actor: str, profile_id: UUID) -> None:
    note_action(connection, actor, "refresh", details={"profile_id": str(profile_id)}, affected=1)


def _told(counts: Mapping[RetryAnswer, int], hint: str | None) -> Message:
    said = [f"{number(counts[answer])} {words}" for answer, words in _WORDS.items() if counts.get(answer)]
    words = f"Images: {'; '.join(said)}." if said else "There is nothing to try again."
    return Message(f"{words} {hint}." if hint else words, is_bad=not any(map(counts.get, TRIED_AGAIN)))


def _back(visit: Visit, form: Form, message: Message) -> Response:
    return visit.go(form.get("next", "/"), message)


def _actor(visit: Visit) -> str:
    assert visit.operator, "operators' forms come from operators"
    return visit.operator.name


def _uuid(form: Form, name: str) -> UUID:
    try:
        return UUID(form.get(name, ""))
    except ValueError:
        raise HTTPException(400, f"The form has no {name}.") from None


def _kind(form: Form) -> FailureKind:
    try:
        return FailureKind(form.get("kind", ""))
    except ValueError:
        raise HTTPException(400, "The form names no kind of failure.") from None


def _priorities(form: Form) -> list[int] | None:
    """The priority that the form names; without one, all."""
    priority = form.get("priority", "")
    if not priority:
        return None
    if priority not in map(str, range(1, 11)):
        raise HTTPException(400, "Priorities are 1 to 10.")
    return [int(priority)]
