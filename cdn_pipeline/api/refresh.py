"""`…/media/refresh`: a user wants a profile's pictures fetched again.

The frontend calls it for whoever looks at the profile, so there is no token. What it costs is bounded instead: a pause
for each profile, so many refreshes a minute and open at once, one run a minute for those of a shard, and no more a day
than half of what the provider may be asked, because the nights need the rest: they are what keeps URLs from expiring on
our watch.
"""

import logging
import math
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from uuid import UUID

import sqlalchemy as sa
from anyio.to_thread import run_sync
from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel, Field

from cdn_pipeline.api.caching import NEVER_CACHED
from cdn_pipeline.api.dagster_graphql import start_run
from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.serving import Served, Serving
from cdn_pipeline.observe.unattended import how_to_start
from cdn_pipeline.queue.refreshes import (
    Limits,
    Refresh,
    RefreshAnswer,
    TooManyRefreshesError,
    UnknownOwnerError,
    latest_refresh,
    note_launch,
    open_refresh,
    wants_run,
)
from cdn_pipeline.settings import Settings

_log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/creators/ig/{profile_id}/media/refresh", tags=["media"], dependencies=NEVER_CACHED)

ProfileId = Annotated[UUID, Path(description="The profile's id in the application's database.")]


class Run(BaseModel):
    """The run that does it."""

    id: str | None = Field(description="Its id in Dagster; null: the sensor has not asked for it yet.")
    started_by: Literal["dagster", "sensor"] = Field(
        description="`dagster`: at once, for this request. `sensor`: within a minute, or by whatever run comes first."
    )
    hint: str | None = Field(
        description="Where no run comes by itself, as the sensor is silent: what an operator does. Null: one comes."
    )


class QueuedRefresh(BaseModel):
    """A refresh that is open."""

    profile_id: UUID
    status: Literal["queued", "already_queued"] = Field(
        description="`already_queued`: somebody asked for it before, and it is not finished."
    )
    requested_at: datetime
    run: Run
    status_url: str = Field(examples=["/api/v1/creators/ig/0b3c0d4e-8f3a-4f0e-9c53-1d2f8f7a6b5c/media/refresh"])


_WORDS = {
    None: "A run will do it, or is doing it.",
    RefreshAnswer.ANSWERED: "The profile was fetched again; pictures that have changed are published next.",
    RefreshAnswer.NO_PROVIDER: "The application's rows were read again; there is no provider to ask.",
    RefreshAnswer.NO_USER_NAME: "The application's rows were read again; they have no user name to ask for.",
    RefreshAnswer.PRIVATE: "The profile is private; what is published stays.",
    RefreshAnswer.GONE: "The profile is gone; what is published stays.",
    RefreshAnswer.BUDGET_SPENT: "The application's rows were read again; the provider is not asked any more today.",
    RefreshAnswer.UNAVAILABLE: "The application's rows were read again; the provider did not deliver the profile.",
    RefreshAnswer.EXPIRED: "No run came to it within the hour; ask again.",
}


class LastRefresh(BaseModel):
    """How a profile's last refresh stands."""

    profile_id: UUID
    status: Literal["queued", "finished"]
    answer: RefreshAnswer | None = Field(description="What it came to; null: it is not finished.")
    words: str = Field(description="The same in words.", examples=list(_WORDS.values())[:1])
    requested_at: datetime
    finished_at: datetime | None = Field(
        description="When the answer was there. `GET …/media` tells which pictures are still on their way."
    )
    run: Run


@router.post(
    "",
    status_code=202,
    responses=documented(404, 422, 429, 503),
    summary="Fetch a profile's pictures again",
)
async def post_refresh(serving: Served, profile_id: ProfileId) -> QueuedRefresh:
    """Asks for it; the answer does not wait for it. Asking again while it is open changes nothing."""
    opened = await run_sync(_open, serving, str(profile_id))
    refresh, url = opened.refresh, serving.settings.dagster_graphql_url
    if opened.needs_run and url and (run_id := await start_run(url, refresh.shard)):
        refresh = await run_sync(_note_launch, serving, refresh, run_id)
    return QueuedRefresh(
        profile_id=profile_id,
        status="queued" if opened.is_new else "already_queued",
        requested_at=refresh.requested_at,
        run=_run(refresh, opened.hint),
        status_url=router.url_path_for("get_refresh", profile_id=profile_id),
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """The open refresh. `needs_run`: one is to be started for it; `hint` is for the case that nobody starts one."""

    refresh: Refresh
    is_new: bool
    needs_run: bool
    hint: str | None


def _open(serving: Serving, owner_id: str) -> _Opened:
    limits = limits_of(serving.settings)

    def work(connection: sa.Connection) -> _Opened:
        refresh, is_new = open_refresh(connection, serving.collection, owner_id, limits)
        needs_run = is_new and wants_run(connection, serving.collection, refresh)
        return _Opened(refresh, is_new, needs_run, how_to_start(connection, [refresh.shard]))

    try:
        return serving.write(work)
    except UnknownOwnerError:
        raise HTTPException(404, "No picture of this profile is known: it is new, removed or erased.") from None
    except TooManyRefreshesError as error:
        seconds = math.ceil(error.retry_after.total_seconds())
        raise HTTPException(429, f"{error} Ask again in {seconds} s.", {"Retry-After": str(seconds)}) from None


def _note_launch(serving: Serving, refresh: Refresh, run_id: str) -> Refresh:
    """The refresh as it stands; the run is started, so it does not matter to the user whether that can be noted."""
    try:
        return serving.write(partial(note_launch, refresh_id=refresh.id, run_id=run_id)) or refresh
    except sa.exc.SQLAlchemyError as error:
        _log.warning("a run that was started could not be noted", extra={"reason": str(error), "run_id": run_id})
        return replace(refresh, run_id=run_id, launched=True)


def limits_of(settings: Settings) -> Limits:
    """How many refreshes there may be; without a provider there is no budget that they could use up, only runs."""
    return Limits(per_day=settings.decodo_requests_per_day // 2) if settings.has_provider else Limits()


@router.get("", responses=documented(404, 422, 503), summary="How a profile's last refresh stands")
def get_refresh(serving: Served, profile_id: ProfileId) -> LastRefresh:
    """What became of the last request, for 30 days."""

    def read(connection: sa.Connection) -> tuple[Refresh | None, str | None]:
        refresh = latest_refresh(connection, serving.collection, str(profile_id))
        waits = refresh is not None and refresh.answer is None
        return refresh, how_to_start(connection, [refresh.shard]) if refresh and waits else None

    refresh, hint = serving.read(read)
    if refresh is None:
        raise HTTPException(404, "Nobody has asked for a refresh of this profile in the last 30 days.")
    run = _run(refresh, hint)
    return LastRefresh(
        profile_id=profile_id,
        status="queued" if refresh.answer is None else "finished",
        answer=refresh.answer,
        words=run.hint or _WORDS[refresh.answer],
        requested_at=refresh.requested_at,
        finished_at=refresh.finished_at,
        run=run,
    )


def _run(refresh: Refresh, hint: str | None) -> Run:
    started_by: Literal["dagster", "sensor"] = "dagster" if refresh.launched else "sensor"
    return Run(id=refresh.run_id, started_by=started_by, hint=None if refresh.run_id else hint)
