"""The buttons. Each does what a route of the API does, through the same function, and says what it came to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

import sqlalchemy as sa
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Response

from cdn_pipeline.api.admin_routes import (
    MAX_RETRIES,
    ClearRequest,
    QueueSelection,
    RetryRequest,
    clear_queue,
    get_failed_jobs,
    restore_held_jobs,
    retry_failed_jobs,
)
from cdn_pipeline.api.pages.sessions import Message
from cdn_pipeline.api.pages.visits import Form, OperatorsForm, PageRoute, Visit, Visited
from cdn_pipeline.api.pages.words import number
from cdn_pipeline.api.refresh import post_refresh
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.failed_jobs import jobs_retried_later
from cdn_pipeline.queue.audit import note_action
from cdn_pipeline.queue.retrying import RetryAnswer
from cdn_pipeline.queue.states import ImageStatus

router = APIRouter(prefix="/actions", route_class=PageRoute, include_in_schema=False)

_RETRY_PRIORITY = 2  # with the avatars; 1 is for users who wait
_MOST_PAGES = 20  # of MAX_RETRIES jobs each, for one press of a button

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
    return _back(visit, form, _told(_retry(visit, [_uuid(form, "job_id")])))


@router.post("/retry-kind")
def post_retry_kind(visit: Visited, form: OperatorsForm) -> Response:
    """Tries all images again that failed with one kind in the last week, or wait for an attempt after it."""
    kind = _kind(form)
    counts, is_all = _hurry_waiting(visit, kind)
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = get_failed_jobs(visit.serving, limit=MAX_RETRIES, kind=kind, cursor=cursor)
        job_ids = [job.id for job in page.jobs if job.image_id and job.image_status != ImageStatus.COMPLETED]
        counts += _retry(visit, job_ids)
        cursor = page.next_cursor
        if cursor is None:
            break
    told = _told(counts)
    if is_all and cursor is None:
        return _back(visit, form, told)
    return _back(visit, form, Message(f"{told.words} There are more: so many are tried at once.", told.is_bad))


def _hurry_waiting(visit: Visit, kind: FailureKind) -> tuple[Counter[RetryAnswer], bool]:
    """Makes waiting jobs due now; what became of them, and whether these were all."""
    counts = Counter[RetryAnswer]()
    waiting = partial(jobs_retried_later, collection=visit.serving.collection, kind=kind, limit=MAX_RETRIES)
    for _ in range(_MOST_PAGES):
        job_ids = visit.serving.read(waiting)
        if not job_ids:
            return counts, True
        counts += _retry(visit, job_ids)
    return counts, False


def _retry(visit: Visit, job_ids: Sequence[UUID]) -> Counter[RetryAnswer]:
    if not job_ids:
        return Counter()
    request = RetryRequest(job_ids=list(job_ids), priority=_RETRY_PRIORITY)
    return Counter(retry_failed_jobs(visit.serving, request, _actor(visit)).counts)


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
        return _back(visit, form, Message("A refresh of this profile is open already; a run does it."))
    await run_sync(visit.serving.write, partial(_note_refresh, actor=_actor(visit), profile_id=profile_id))
    who = "a run was started for it" if refresh.run.started_by == "dagster" else "the sensor asks for a run in a minute"
    return _back(visit, form, Message(f"The profile is fetched again: {who}."))


def _note_refresh(connection: sa.Connection, actor: str, profile_id: UUID) -> None:
    note_action(connection, actor, "refresh", details={"profile_id": str(profile_id)}, affected=1)


def _told(counts: Mapping[RetryAnswer, int]) -> Message:
    said = [f"{number(counts[answer])} {words}" for answer, words in _WORDS.items() if counts.get(answer)]
    is_bad = not (counts.get(RetryAnswer.REOPENED) or counts.get(RetryAnswer.HURRIED))
    return Message(f"Images: {'; '.join(said)}." if said else "There is nothing to try again.", is_bad)


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
