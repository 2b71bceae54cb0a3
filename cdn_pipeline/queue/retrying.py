"""An operator's retry: failed jobs, named one by one, are tried again at once and ahead of the others."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.intake import IS_OPEN, JOB_COLUMNS, job_defaults
from cdn_pipeline.queue.reopen import HAS_ENDED, HAS_ORIGINAL, KNOWN_FAILURE
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType, Stage


class RetryAnswer(StrEnum):
    """What became of one job that was to be tried again."""

    REOPENED = "reopened"  # a new job was opened for its image
    HURRIED = "hurried"  # it was waiting for a later attempt and is due now
    HELD = "held"  # its image's open job is on hold, and stays so until the queue is restored
    OPEN = "open"  # its image has another open job already, or this one is in hand or due
    COMPLETED = "completed"  # its image is published as it should be
    WAITS_FOR_URL = "waits_for_url"  # the source URL has expired; a fresh one heals the image by itself
    ERASED = "erased"
    UNKNOWN = "unknown"  # there is no such job, or not any more


TRIED_AGAIN = frozenset({RetryAnswer.REOPENED, RetryAnswer.HURRIED})
"""The answers after which something is due."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The answer for one job; `open_job_id` is the image's open job afterwards, if it has one, in this shard."""

    job_id: uuid.UUID
    answer: RetryAnswer
    open_job_id: uuid.UUID | None
    shard: str | None  # None: there is no such job, or its image was erased


def retry_jobs(
    connection: sa.Connection, collection: Collection, job_ids: Sequence[uuid.UUID], *, priority: int
) -> Sequence[Retry]:
    """Opens a job of type `retry` for the images of failed jobs, with all attempts before it; tells of each id.

    From the stored original where there is one of the present picture, so that no URL is needed; else from the source.
    A rollout's failed job is tried again as one of the same rollout. A job that waits for its next attempt is due now,
    as if it had not been tried yet; one on hold stays on hold.
    """
    values: dict[str, Any] = {
        **job_defaults(collection, collection.recipe),
        "collection": collection.name,
        "job_ids": list(dict.fromkeys(job_ids)),
        "priority": priority,
        "recipes": [recipe.name for recipe in collection.rollouts],
    }
    hurried = set(connection.scalars(_HURRY, values))
    reopened = set(connection.scalars(_REOPEN, values))
    found = {row["job_id"]: row for row in connection.execute(_ASKED_FOR, values).mappings()}
    return [_retry(job_id, found.get(job_id), hurried, reopened) for job_id in values["job_ids"]]


def _retry(job_id: uuid.UUID, row: sa.RowMapping | None, hurried: set[uuid.UUID], reopened: set[uuid.UUID]) -> Retry:
    if row is None:
        return Retry(job_id, RetryAnswer.UNKNOWN, None, None)
    if row["asset_id"] is None:
        return Retry(job_id, RetryAnswer.ERASED, None, None)
    if job_id in hurried:
        answer = RetryAnswer.HURRIED
    elif row["asset_id"] in reopened:
        answer = RetryAnswer.REOPENED
    elif row["is_held"]:
        answer = RetryAnswer.HELD
    elif row["open_job_id"] is not None:
        answer = RetryAnswer.OPEN
    elif row["processing_status"] == ImageStatus.COMPLETED:
        answer = RetryAnswer.COMPLETED
    else:
        answer = RetryAnswer.WAITS_FOR_URL
    return Retry(job_id, answer, row["open_job_id"], row["shard"])


_HURRY = sa.text(f"""
    UPDATE cdn_image_jobs
    SET next_attempt_at = clock_timestamp(), retry_count = 0, priority = least(priority, :priority),
        updated_at = clock_timestamp()
    WHERE id IN (
        SELECT id FROM cdn_image_jobs
        WHERE id = ANY(:job_ids) AND collection = :collection AND status = '{JobStatus.QUEUED}'
          AND held_at IS NULL AND next_attempt_at > clock_timestamp()
        ORDER BY asset_id FOR UPDATE)
    RETURNING id
""")

# An image that failed or waits is tried with what there is: its original, or a URL that lives. (One that failed for
# good is tried with a dead URL as well: it then begins to wait for a fresh one.) A completed one only for the sake of a
# rollout, which needs the original.
_REOPEN = sa.text(f"""
    WITH asked AS (
        SELECT DISTINCT ON (asset_id) asset_id, rollout FROM cdn_image_jobs
        WHERE id = ANY(:job_ids) AND collection = :collection AND status = '{JobStatus.FAILED}'
          AND asset_id IS NOT NULL
        ORDER BY asset_id, completed_at DESC
    ), wanted AS (
        SELECT a.id, {HAS_ORIGINAL} AS has_original,
               CASE WHEN a.processing_status = '{ImageStatus.COMPLETED}' THEN asked.rollout END AS rollout
        FROM cdn_image_assets a JOIN asked ON asked.asset_id = a.id
        WHERE {HAS_ENDED} AND CASE
            WHEN a.processing_status = '{ImageStatus.COMPLETED}' THEN asked.rollout = ANY(:recipes) AND {HAS_ORIGINAL}
            ELSE a.processing_status = '{ImageStatus.FAILED}' OR {HAS_ORIGINAL}
                 OR coalesce(a.url_expires_at > clock_timestamp(), true) END
        ORDER BY a.id FOR UPDATE OF a
    ), reopened AS (
        UPDATE cdn_image_assets a
        SET processing_status = '{ImageStatus.PENDING}', processing_attempts = 0, failure_kind = {KNOWN_FAILURE},
            processing_error = NULL, updated_at = clock_timestamp()
        FROM wanted WHERE a.id = wanted.id
        RETURNING a.*, has_original, wanted.rollout
    )
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS}, stage, rollout)
    SELECT id, collection, shard, '{JobType.RETRY}', :priority, source_url, url_expires_at, :sizes, :format,
           CASE WHEN has_original THEN '{Stage.ENCODE}' ELSE '{Stage.DOWNLOAD}' END, rollout
    FROM reopened
    ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
    RETURNING asset_id
""")

_ASKED_FOR = sa.text(f"""
    SELECT j.id AS job_id, j.asset_id, j.shard, a.processing_status, o.id AS open_job_id,
           o.held_at IS NOT NULL AS is_held
    FROM cdn_image_jobs j LEFT JOIN cdn_image_assets a ON a.id = j.asset_id
    LEFT JOIN LATERAL (
        SELECT id, held_at FROM cdn_image_jobs WHERE asset_id = j.asset_id AND {IS_OPEN}) AS o ON true
    WHERE j.id = ANY(:job_ids) AND j.collection = :collection
""")
