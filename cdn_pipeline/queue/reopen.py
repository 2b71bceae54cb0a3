"""Opens jobs because an operator or a rollout asks for it, not because a source changed."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, REENCODE_PRIORITY, SHARDS, Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.intake import IS_OPEN, JOB_COLUMNS, job_defaults
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType, Stage

REPAIR_PRIORITY = 2  # as avatars: somebody sees a broken picture


def open_jobs_again(
    connection: sa.Connection,
    collection: Collection,
    shards: Sequence[str],
    *,
    from_originals: bool,
    force: bool,
    owner_ids: Sequence[str] | None,
    limit: int | None,
) -> int:
    """Opens jobs for images that an operator wants processed again; returns how many.

    From stored originals: images whose current renditions are not of the recipe's version, or all of them with
    `force`; but not those whose original is not the picture that their URL now shows. Otherwise (only with `force`):
    all images whose URL still lives, downloaded again, and failed ones in any case: with a dead URL they begin to wait
    for a fresh one. Images that have an open job are left to it.
    """
    values = {
        **_wanted(collection, collection.recipe, shards, owner_ids),
        "limit": limit,
        "force": force,
        "stage": Stage.ENCODE if from_originals else Stage.DOWNLOAD,
        "priority": REENCODE_PRIORITY if from_originals else BACKFILL_PRIORITY,
    }
    return connection.execute(_REOPEN_FROM_ORIGINALS if from_originals else _REOPEN_FROM_SOURCE, values).rowcount


def open_repair_jobs(
    connection: sa.Connection,
    collection: Collection,
    recipe: Recipe,
    asset_ids: Sequence[uuid.UUID],
    stage: Stage,
) -> set[uuid.UUID]:
    """Opens jobs that put back what the stores have lost of these images; returns the images that get one.

    At stage encode from their originals, if those are of the present picture; at stage download from their URLs, if
    those live. An image that has an open job is left to it.
    """
    values = {
        **_wanted(collection, recipe, SHARDS, None),
        "asset_ids": list(asset_ids),
        "rollout": None if recipe == collection.recipe else recipe.name,
        "force": True,
        "priority": REPAIR_PRIORITY,
        "stage": stage,
    }
    repair = _REPAIR_FROM_ORIGINALS if stage is Stage.ENCODE else _REPAIR_FROM_SOURCE
    return set(connection.scalars(repair, values))


@dataclass(frozen=True, slots=True)
class Rollout:
    """A recipe that is rolled out: completed images get renditions of this version or a later one.

    `started_at` is when an operator last started it; what has failed since then is not tried again.
    """

    recipe: Recipe
    version: int
    started_at: datetime


def active_rollouts(connection: sa.Connection, collection: Collection) -> list[Rollout]:
    """The rollouts that are not paused, of recipes that this code has.

    One whose recipe has another version by now goes on with the lower one: a new version is rolled out by an operator.
    """
    recipes = {recipe.name: recipe for recipe in collection.recipes}
    rows = connection.execute(_ACTIVE_ROLLOUTS, {"collection": collection.name, "recipes": list(recipes)})
    return [
        Rollout(recipes[row.recipe], min(row.recipe_version, recipes[row.recipe].version), row.started_at)
        for row in rows
    ]


_ACTIVE_ROLLOUTS = sa.text("""
    SELECT recipe, recipe_version, started_at FROM cdn_rollouts
    WHERE collection = :collection AND paused_at IS NULL AND recipe = ANY(:recipes)
    ORDER BY started_at
""")


def open_rollout_jobs(
    connection: sa.Connection,
    collection: Collection,
    shards: Sequence[str],
    *,
    owner_ids: Sequence[str] | None = None,
) -> int:
    """Opens jobs for what active rollouts lack in these shards; returns how many.

    Of completed images that have an original of their present picture. One whose rollout failed is left alone until it
    has another original or an operator starts the rollout anew. One round trip if nothing is rolled out.
    """
    opened = 0
    for rollout in active_rollouts(connection, collection):
        opened += open_jobs_of_rollout(connection, collection, rollout, shards, owner_ids=owner_ids)
    return opened


def open_jobs_of_rollout(
    connection: sa.Connection,
    collection: Collection,
    rollout: Rollout,
    shards: Sequence[str],
    *,
    owner_ids: Sequence[str] | None = None,
) -> int:
    """Opens jobs for what one rollout lacks in these shards, as `open_rollout_jobs` does; returns how many."""
    recipe = rollout.recipe
    if not connection.scalar(_GOES_ON, {"collection": collection.name, "recipe": recipe.name}):
        return 0
    values = {
        **_wanted(collection, recipe, shards, owner_ids),
        "version": rollout.version,
        "started_at": rollout.started_at,
        "rollout": None if recipe == collection.recipe else recipe.name,
        "priority": REENCODE_PRIORITY,
        "stage": Stage.ENCODE,
    }
    return connection.execute(_OPEN_ROLLOUT_JOBS, values).rowcount


# Whoever pauses the rollout waits until these jobs are there, and then holds them as well.
_GOES_ON = sa.text("""
    SELECT true FROM cdn_rollouts WHERE collection = :collection AND recipe = :recipe AND paused_at IS NULL FOR SHARE
""")


def _wanted(
    collection: Collection, recipe: Recipe, shards: Sequence[str], owner_ids: Sequence[str] | None
) -> dict[str, Any]:
    return {
        **job_defaults(collection, recipe),
        "collection": collection.name,
        "shards": list(shards),
        "owners": list(owner_ids) if owner_ids is not None else None,
        "recipe": recipe.name,
        "version": recipe.version,
        "size_count": len(recipe.sizes),
        "rollout": None,
        "limit": None,
        "force": False,
    }


# Completed, failed and waiting images have no open job.
HAS_ENDED = f"""a.processing_status IN ('{ImageStatus.COMPLETED}', '{ImageStatus.FAILED}', '{ImageStatus.PENDING}')
    AND NOT EXISTS (SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND {IS_OPEN})"""

HAS_ORIGINAL = "a.original_identity = a.identity"

# What an image that is reopened still knows of its failure: a picture that was gone asked for its fresh URL before, so
# another 404 ends it again instead of letting it wait for a URL that perhaps nobody brings.
KNOWN_FAILURE = f"CASE WHEN a.failure_kind = '{FailureKind.SOURCE_GONE}' THEN a.failure_kind END"

# By this version of the recipe or a later one, from the stored original.
LACKS_RENDITIONS = """:size_count > (
    SELECT count(*) FROM cdn_image_renditions r
    WHERE r.asset_id = a.id AND r.state = 'current' AND r.recipe = :recipe AND r.recipe_version >= :version
      AND r.original_sha256 = a.original_sha256)"""

HAS_FAILED_ROLLOUT = f"""EXISTS (
    SELECT FROM cdn_image_jobs j
    WHERE j.asset_id = a.id AND j.rollout = :recipe AND j.status = '{JobStatus.FAILED}'
      AND j.completed_at >= :started_at AND j.error_details ->> 'original' = a.original_sha256)"""


def _reopen(which: str) -> sa.TextClause:
    return sa.text(f"""
        WITH wanted AS (
            SELECT a.id, a.processing_status = '{ImageStatus.COMPLETED}' AS completed FROM cdn_image_assets a
            WHERE a.collection = :collection AND a.shard = ANY(:shards)
              AND (CAST(:owners AS text[]) IS NULL OR a.owner_id = ANY(:owners))
              AND {which}
            ORDER BY a.id LIMIT :limit FOR UPDATE
        ), reopened AS (
            UPDATE cdn_image_assets a
            SET processing_status = '{ImageStatus.PENDING}', processing_attempts = 0,
                failure_kind = {KNOWN_FAILURE}, processing_error = NULL, updated_at = clock_timestamp()
            FROM wanted WHERE a.id = wanted.id
            RETURNING a.*, completed
        )
        INSERT INTO cdn_image_jobs ({JOB_COLUMNS}, stage, force, rollout)
        SELECT id, collection, shard, CASE WHEN completed THEN '{JobType.UPDATE}' ELSE '{JobType.RETRY}' END,
               :priority, source_url, url_expires_at, :sizes, :format, :stage, :force, :rollout
        FROM reopened
        ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
    """)


_REOPEN_FROM_ORIGINALS = _reopen(f"{HAS_ENDED} AND {HAS_ORIGINAL} AND (:force OR {LACKS_RENDITIONS})")

_REOPEN_FROM_SOURCE = _reopen(f"""{HAS_ENDED} AND (:force OR {LACKS_RENDITIONS})
    AND (a.processing_status = '{ImageStatus.FAILED}' OR coalesce(a.url_expires_at > clock_timestamp(), true))""")

_OF_THESE = f"a.id = ANY(:asset_ids) AND {HAS_ENDED}"


def _telling(reopen: sa.TextClause) -> sa.TextClause:
    return sa.text(f"{reopen.text} RETURNING asset_id")


# Other recipes are made of completed images only: `settlement` relies on it.
_REPAIR_FROM_ORIGINALS = _telling(
    _reopen(f"""{_OF_THESE} AND {HAS_ORIGINAL}
        AND (CAST(:rollout AS text) IS NULL OR a.processing_status = '{ImageStatus.COMPLETED}')""")
)

_REPAIR_FROM_SOURCE = _telling(_reopen(f"{_OF_THESE} AND coalesce(a.url_expires_at > clock_timestamp(), true)"))

_OPEN_ROLLOUT_JOBS = _reopen(f"""a.processing_status = '{ImageStatus.COMPLETED}' AND {HAS_ORIGINAL}
    AND {LACKS_RENDITIONS} AND NOT {HAS_FAILED_ROLLOUT}""")
