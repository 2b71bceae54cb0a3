"""Erasures over HTTP: what one would take, begin one, see how they stand. `upkeep.erase` does the work."""

from contextlib import suppress
from functools import partial
from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, BackgroundTasks, HTTPException, Path, Query
from pydantic import Field

from cdn_pipeline.api.admin import AdminRoute, Exact, OptionalActor
from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.serving import Served, Serving
from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.audit import note_action
from cdn_pipeline.queue.erasures import Erasure, list_erasures, read_erasure
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import StoreUnavailable
from cdn_pipeline.upkeep.erase import Eraser, Target
from cdn_pipeline.upkeep.erasure_plan import Plan, plan_erasure

router = APIRouter(prefix="/api/v1/admin/cdn", route_class=AdminRoute)  # tags and token come with the admin router

_THREADS = CapacityLimiter(2)  # of their own, for minutes each: everybody else's are for what takes seconds

_TEXT = r"^[^\x00]+$"  # Postgres keeps no zero bytes


class OneOwner(Exact):
    """An owner with all images."""

    owner_id: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,100}$",
        description="A profile's id.",
        examples=["0b3c5a6e-8f0e-4a57-9f0f-2d6f3c1f7e10"],
    )


class SomeImages(Exact):
    """Some images of one owner, and what else of the owner's shows the same pictures."""

    image_ids: list[UUID] = Field(min_length=1, max_length=1000, description="Ids of rows of the catalog.")


class _Request(Exact):
    requested_by: str = Field(
        min_length=1, max_length=200, pattern=_TEXT, description="Who asks; the audit keeps it.", examples=["ada"]
    )
    reason: str = Field(
        min_length=1, max_length=1000, pattern=_TEXT, description="Why; the audit keeps it.", examples=["ticket 123"]
    )


class EraseOwner(OneOwner, _Request):
    """The erasure of an owner. It cannot be undone."""


class EraseImages(SomeImages, _Request):
    """The erasure of some images. It cannot be undone."""


def _target(connection: sa.Connection, collection: Collection, asked: OneOwner | SomeImages) -> Target:
    if isinstance(asked, OneOwner):
        return Target(_as_written(asked.owner_id))
    owners = list(connection.scalars(_OWNERS, {"collection": collection.name, "ids": asked.image_ids}))
    if not owners:
        raise HTTPException(404, "The catalog has none of these images.")
    if len(owners) > 1:
        raise HTTPException(409, f"These images are of {len(owners)} owners: ask for each owner's by itself.")
    return Target(owners[0], tuple(asked.image_ids))


def _as_written(owner_id: str) -> str:
    """As the catalog writes it: UUIDs with hyphens and in lower case."""
    with suppress(ValueError):
        return str(UUID(owner_id))
    return owner_id


_OWNERS = sa.text("""
    SELECT DISTINCT owner_id FROM cdn_image_assets WHERE collection = :collection AND id = ANY(:ids)
""")


@router.post("/erasure-plan", responses=documented(400, 404, 409, 413, 422), summary="What an erasure would take")
def preview_erasure(serving: Served, asked: OneOwner | SomeImages) -> Plan:
    """Changes nothing. `shared` stays, because other images refer to it."""

    def read(connection: sa.Connection) -> Plan:
        return plan_erasure(connection, serving.collection, _target(connection, serving.collection, asked))

    return serving.read(read)


@router.post(
    "/erasures", status_code=202, responses=documented(400, 404, 409, 413, 422), summary="Erase an owner or some images"
)
def begin_erasure(
    serving: Served, asked: EraseOwner | EraseImages, tasks: BackgroundTasks, actor: OptionalActor = None
) -> Erasure:
    """Begins at once: from now on nothing lets the pictures in. The rest takes up to two minutes, after this answer.

    Its state tells how it ends: `done`, `purge_pending` (gone from catalog and stores, caches may still have it), or
    `open` with the problem; asking again goes on with it, and so do the clean-up and `cdn-pipeline erase --resume`.
    """
    try:
        eraser = Eraser.of(serving.settings, serving.catalog)
    except StoreUnavailable as error:
        raise HTTPException(503, str(error)) from error

    def begin(connection: sa.Connection) -> Erasure:
        target = _target(connection, serving.collection, asked)
        erasure_id = eraser.begin_within(connection, target, requested_by=asked.requested_by, reason=asked.reason)
        erasure = read_erasure(connection, erasure_id)
        note_action(connection, actor or asked.requested_by, "erase", details=_details(erasure, asked), affected=1)
        return erasure

    erasure = serving.administer(begin)
    tasks.add_task(_go_on, serving.settings, erasure.id)
    return erasure


def _details(erasure: Erasure, asked: _Request) -> dict[str, str]:
    """As the audit keeps them."""
    return {
        "erasure": str(erasure.id),
        "scope": erasure.scope,
        "owner_id": erasure.owner_id,
        "requested_by": asked.requested_by,
        "reason": asked.reason,
    }


async def _go_on(settings: Settings, erasure_id: UUID) -> None:
    await run_sync(_finish, settings, erasure_id, limiter=_THREADS)


def _finish(settings: Settings, erasure_id: UUID) -> None:
    """On connections without the API's limits: it waits for runs, and for clean-up."""
    with open_catalog(settings) as catalog:
        Eraser.of(settings, catalog).go_on(erasure_id)


@router.get("/erasures", responses=documented(422), summary="How erasures stand")
def get_erasures(
    serving: Served, unfinished: Annotated[bool, Query(description="Only what is not done.")] = False
) -> list[Erasure]:
    """All of them, the latest first."""
    return serving.read(partial(list_erasures, collection=serving.collection, unfinished=unfinished))


@router.get("/erasures/{erasure_id}", responses=documented(404, 422), summary="How one erasure stands")
def get_erasure(
    serving: Served, erasure_id: Annotated[UUID, Path(description="The `id` of the answer that began it.")]
) -> Erasure:
    """The audit row: who asked, why, how much it took and how far it is. Without the picture."""
    return _found(serving, erasure_id)


def _found(serving: Serving, erasure_id: UUID) -> Erasure:
    try:
        return serving.read(partial(read_erasure, erasure_id=erasure_id))
    except sa.exc.NoResultFound:
        raise HTTPException(404, f"There is no erasure {erasure_id}.") from None
