"""Holds: "queue clear" takes queued jobs out of every run's reach without losing them, and gives them back."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import REENCODE_PRIORITY, Collection
from cdn_pipeline.queue.states import JobStatus, Stage


def hold_queue(
    connection: sa.Connection,
    collection: Collection,
    *,
    shards: Sequence[str] | None = None,
    priorities: Sequence[int] | None = None,
) -> int:
    """Holds queued jobs, of all shards and priorities unless some are given; returns how many.

    A held job is not due. It follows its image all the same: when discovery finds a fresh URL or another picture, the
    job takes it over and stays held. (One that was to encode the old picture again becomes an ordinary job and is let
    go.) A job in hand is not held: its run finishes it, or puts it back into the queue, where it is due as before.
    """
    return connection.execute(_HOLD, _selected(collection, shards, priorities)).rowcount


def count_queued(
    connection: sa.Connection,
    collection: Collection,
    *,
    shards: Sequence[str] | None = None,
    priorities: Sequence[int] | None = None,
) -> int:
    """How many jobs `hold_queue` would hold now."""
    return connection.scalar(_COUNT, _selected(collection, shards, priorities)) or 0


def restore_queue(
    connection: sa.Connection,
    collection: Collection,
    *,
    shards: Sequence[str] | None = None,
    priorities: Sequence[int] | None = None,
) -> int:
    """Lets held jobs go, of all shards and priorities unless some are given; returns how many.

    They are due when they would have been, or now. Jobs of a paused rollout stay held until it is resumed.
    """
    values = {**_selected(collection, shards, priorities), "own_recipe": collection.recipe.name}
    return connection.execute(_RESTORE, values).rowcount


def _selected(collection: Collection, shards: Sequence[str] | None, priorities: Sequence[int] | None) -> dict[str, Any]:
    return {
        "collection": collection.name,
        "shards": list(shards) if shards is not None else None,
        "priorities": list(priorities) if priorities is not None else None,
    }


_SELECTED = f"""j.collection = :collection AND j.status = '{JobStatus.QUEUED}'
    AND (CAST(:shards AS text[]) IS NULL OR j.shard = ANY(:shards))
    AND (CAST(:priorities AS int[]) IS NULL OR j.priority = ANY(:priorities))"""

_COUNT = sa.text(f"SELECT count(*) FROM cdn_image_jobs AS j WHERE {_SELECTED} AND j.held_at IS NULL")

_HOLD = sa.text(f"""
    UPDATE cdn_image_jobs AS j SET held_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE {_SELECTED} AND j.held_at IS NULL
""")

# Which recipe a job rolls out, if any. Jobs of the collection's own name no rollout, but only encoding again has their
# priority.
_ROLLED_OUT = f"""coalesce(
    j.rollout, CASE WHEN j.priority = {REENCODE_PRIORITY} AND j.stage <> '{Stage.DOWNLOAD}' THEN :own_recipe END)"""

_RESTORE = sa.text(f"""
    UPDATE cdn_image_jobs AS j
    SET held_at = NULL, next_attempt_at = greatest(next_attempt_at, clock_timestamp()), updated_at = clock_timestamp()
    WHERE {_SELECTED} AND j.held_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM cdn_rollouts r
        WHERE r.collection = j.collection AND r.recipe = {_ROLLED_OUT} AND r.paused_at IS NOT NULL)
""")
