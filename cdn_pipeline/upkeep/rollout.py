"""Rolling out a recipe: its renditions for every published image, made from stored originals without a download.

A rollout is a row that names the recipe and the version that images are to have. Starting it opens a job for every
image that lacks it; every later run opens jobs for the images that have been published since, until it is paused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import REENCODE_PRIORITY, SHARDS, Collection, UnknownRecipeError
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.reopen import Rollout, open_jobs_of_rollout
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage

__all__ = [
    "RolloutProgress",
    "RolloutStatus",
    "UnknownRecipeError",
    "pause_rollout",
    "resume_rollout",
    "rollout_status",
    "start_rollout",
]


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """A shard whose jobs are open: how many were opened in it, and in `total` by this call so far.

    `let_go` is how many jobs of the whole rollout had been on hold when the call began.
    """

    shard: str
    opened: int
    total: int
    let_go: int


def start_rollout(
    engine: sa.Engine, collection: Collection, recipe_name: str, *, force: bool = False
) -> Iterator[RolloutProgress]:
    """Starts a rollout, or goes on with one, also with a paused one; yields every shard when its jobs are open.

    The version is the recipe's present one; with the collection's own recipe, images that have an earlier version are
    encoded again. Once begun it may be interrupted and repeated: an image that has its renditions or an open job is
    left to them. So is one whose rollout failed, unless the version is new or `force` starts the rollout anew.

    Raises:
        UnknownRecipeError: the collection has no such recipe.
    """
    recipe = collection.recipe_named(recipe_name)
    rollout, let_go = transaction(engine, partial(_register, collection=collection, recipe=recipe, force=force))
    return _open_jobs(engine, collection, rollout, let_go)


def _register(connection: sa.Connection, collection: Collection, recipe: Recipe, force: bool) -> tuple[Rollout, int]:
    values = {**_its_jobs(collection, recipe), "version": recipe.version, "force": force}
    started_at = connection.execute(_START, values).scalar_one()
    let_go = connection.execute(_LET_GO, values).rowcount
    return Rollout(recipe, recipe.version, started_at), let_go


def _open_jobs(engine: sa.Engine, collection: Collection, rollout: Rollout, let_go: int) -> Iterator[RolloutProgress]:
    total = 0
    for shard in SHARDS:
        work = partial(open_jobs_of_rollout, collection=collection, rollout=rollout, shards=[shard])
        opened = transaction(engine, work)
        total += opened
        yield RolloutProgress(shard, opened, total, let_go)


_START = sa.text("""
    INSERT INTO cdn_rollouts AS known (collection, recipe, recipe_version, started_at)
    VALUES (:collection, :recipe, :version, clock_timestamp())
    ON CONFLICT (collection, recipe) DO UPDATE
    SET recipe_version = excluded.recipe_version, paused_at = NULL,
        started_at = CASE WHEN :force OR known.recipe_version <> excluded.recipe_version THEN excluded.started_at
                          ELSE known.started_at END
    RETURNING started_at
""")


def pause_rollout(connection: sa.Connection, collection: Collection, recipe_name: str) -> int:
    """Puts a rollout's queued jobs on hold and opens no more; returns how many are put on hold.

    What runs have in hand they finish; what they put back into the queue is due again.

    Raises:
        UnknownRecipeError: the collection has no such recipe, or its rollout was never started.
    """
    return _set_paused(connection, collection, recipe_name, _PAUSE, _HOLD)


def resume_rollout(connection: sa.Connection, collection: Collection, recipe_name: str) -> int:
    """Lets a paused rollout go on; returns how many of its jobs were on hold, whoever put them there.

    Raises:
        UnknownRecipeError: the collection has no such recipe, or its rollout was never started.
    """
    return _set_paused(connection, collection, recipe_name, _RESUME, _LET_GO)


def _set_paused(
    connection: sa.Connection, collection: Collection, recipe_name: str, mark: sa.TextClause, jobs: sa.TextClause
) -> int:
    recipe = collection.recipe_named(recipe_name)
    values = _its_jobs(collection, recipe)
    if connection.execute(mark, values).rowcount == 0:
        raise UnknownRecipeError(f"{recipe.name} is not rolled out in {collection.name}: start it first")
    return connection.execute(jobs, values).rowcount


def _its_jobs(collection: Collection, recipe: Recipe) -> dict[str, Any]:
    return {"collection": collection.name, "recipe": recipe.name, "is_own": recipe == collection.recipe}


# Jobs of the collection's own recipe name no rollout, but only encoding again has their priority.
_ITS_JOBS = f"""collection = :collection
    AND CASE WHEN :is_own THEN rollout IS NULL AND priority = {REENCODE_PRIORITY} AND stage <> '{Stage.DOWNLOAD}'
             ELSE rollout = :recipe END"""

_PAUSE = sa.text("""
    UPDATE cdn_rollouts SET paused_at = coalesce(paused_at, clock_timestamp())
    WHERE collection = :collection AND recipe = :recipe
""")

_RESUME = sa.text("UPDATE cdn_rollouts SET paused_at = NULL WHERE collection = :collection AND recipe = :recipe")

_HOLD = sa.text(f"""
    UPDATE cdn_image_jobs SET held_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE status = '{JobStatus.QUEUED}' AND held_at IS NULL AND {_ITS_JOBS}
""")

_LET_GO = sa.text(f"""
    UPDATE cdn_image_jobs
    SET held_at = NULL, next_attempt_at = greatest(next_attempt_at, clock_timestamp()), updated_at = clock_timestamp()
    WHERE status = '{JobStatus.QUEUED}' AND held_at IS NOT NULL AND {_ITS_JOBS}
""")


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """How far a rollout is, in images.

    `total` are those that it is for: published, with an original of their present picture. What of them is neither
    `done` nor `open`, `held` or `failed` has a job of another kind, or gets one of the rollout by the next run.
    """

    recipe: str
    version: int
    paused: bool
    done: int
    open: int
    held: int
    failed: int
    total: int


def rollout_status(connection: sa.Connection, collection: Collection) -> list[RolloutStatus]:
    """All rollouts of the collection, in the order in which they were started; recipes unknown to this code left out.

    Counts every image: some seconds for a million.
    """
    recipes = {recipe.name: recipe for recipe in collection.recipes}
    rows = connection.execute(_ROLLOUTS, {"collection": collection.name, "recipes": list(recipes)}).mappings().all()
    return [_status(connection, collection, recipes[row["recipe"]], row) for row in rows]


def _status(connection: sa.Connection, collection: Collection, recipe: Recipe, rollout: sa.RowMapping) -> RolloutStatus:
    is_own = recipe == collection.recipe
    values = {
        **_its_jobs(collection, recipe),
        "version": rollout["recipe_version"],
        "started_at": rollout["started_at"],
        "size_count": len(recipe.sizes),
    }
    counts = connection.execute(_COUNT_OWN if is_own else _COUNT, values).mappings().one()
    return RolloutStatus(recipe.name, rollout["recipe_version"], rollout["paused_at"] is not None, **counts)


_ROLLOUTS = sa.text("""
    SELECT recipe, recipe_version, started_at, paused_at FROM cdn_rollouts
    WHERE collection = :collection AND recipe = ANY(:recipes) ORDER BY started_at
""")

_ITS_IMAGES = """a.collection = :collection AND a.processing_completed_at IS NOT NULL
    AND a.original_identity = a.identity"""


def _count(failed: str) -> sa.TextClause:
    return sa.text(f"""
        SELECT
            (SELECT count(*) FROM cdn_image_assets a WHERE {_ITS_IMAGES}) AS total,
            (SELECT count(*) FROM (
                SELECT FROM cdn_image_renditions r
                JOIN cdn_image_assets a ON a.id = r.asset_id AND a.original_sha256 = r.original_sha256
                WHERE r.state = 'current' AND r.recipe = :recipe AND r.recipe_version >= :version AND {_ITS_IMAGES}
                GROUP BY a.id HAVING count(*) >= :size_count) AS complete) AS done,
            (SELECT count(*) FROM cdn_image_jobs
             WHERE status IN ('{JobStatus.QUEUED}', '{JobStatus.PROCESSING}') AND held_at IS NULL AND {_ITS_JOBS}
            ) AS open,
            (SELECT count(*) FROM cdn_image_jobs
             WHERE status = '{JobStatus.QUEUED}' AND held_at IS NOT NULL AND {_ITS_JOBS}) AS held,
            (SELECT count(*) FROM cdn_image_assets a WHERE {_ITS_IMAGES} AND {failed}) AS failed
    """)


_COUNT = _count(f"""(a.id, a.original_sha256) IN (
    SELECT asset_id, error_details ->> 'original' FROM cdn_image_jobs
    WHERE rollout = :recipe AND status = '{JobStatus.FAILED}' AND completed_at >= :started_at)""")

_COUNT_OWN = _count(f"a.processing_status = '{ImageStatus.FAILED}'")
