"""An operator's retry of images: those that are named, or all that a kind of failure or a shard has in common."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.audit import note_action
from cdn_pipeline.queue.due import IS_DUE
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.reopen import HAS_ORIGINAL, REPAIR_PRIORITY, open_repair_jobs
from cdn_pipeline.queue.retrying import TRIED_AGAIN, RetryAnswer, retry_jobs
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage

IMAGES_AT_ONCE = 500  # of one transaction: half a second


@dataclass(frozen=True, slots=True)
class RetriedImage:
    """What became of one image; `failure` is why it had failed, if it had."""

    image_id: uuid.UUID
    source_type: str
    source_id: str
    shard: str
    failure: FailureKind | None
    answer: RetryAnswer


def failing_images(
    connection: sa.Connection,
    collection: Collection,
    *,
    kind: FailureKind | None = None,
    shards: Sequence[str] | None = None,
) -> Sequence[uuid.UUID]:
    """Images whose last attempt failed: for good, until a fresh URL comes, or until the next attempt.

    Not those that are due or in hand again already.
    """
    values = {"collection": collection.name, "kind": kind, "shards": list(shards) if shards is not None else None}
    return connection.scalars(_FAILING, values).all()


_FAILING = sa.text(f"""
    SELECT id FROM cdn_image_assets AS a
    WHERE collection = :collection AND processing_status <> '{ImageStatus.COMPLETED}' AND failure_kind IS NOT NULL
      AND (CAST(:kind AS text) IS NULL OR failure_kind = :kind)
      AND (CAST(:shards AS text[]) IS NULL OR shard = ANY(:shards))
      AND NOT EXISTS (
          SELECT FROM cdn_image_jobs
          WHERE asset_id = a.id AND {IS_OPEN} AND (status = '{JobStatus.PROCESSING}' OR {IS_DUE}))
    ORDER BY shard, id
""")


def retry_images(
    catalog: sa.Engine, collection: Collection, image_ids: Sequence[uuid.UUID], *, actor: str, dry_run: bool
) -> Iterator[Sequence[RetriedImage]]:
    """Tries the images again, some hundred at a time, each time in one transaction with its row of the audit.

    With `dry_run` every transaction is rolled back, so that its answers are those that would be given.
    """
    for start in range(0, len(image_ids), IMAGES_AT_ONCE):
        some = image_ids[start : start + IMAGES_AT_ONCE]
        work = partial(_retry, collection=collection, image_ids=some, actor=actor)
        if dry_run:
            with catalog.connect() as connection:
                yield work(connection)
        else:
            yield transaction(catalog, work)


def _retry(
    connection: sa.Connection, collection: Collection, image_ids: Sequence[uuid.UUID], actor: str
) -> Sequence[RetriedImage]:
    images = connection.execute(_IMAGES, {"collection": collection.name, "ids": list(image_ids)}).all()
    by_job = {image.job_id: image.id for image in images if image.job_id is not None}
    answers = {
        by_job[retry.job_id]: retry.answer
        for retry in retry_jobs(connection, collection, list(by_job), priority=REPAIR_PRIORITY)
    }
    answers |= _open_first_jobs(connection, collection, [image for image in images if image.job_id is None])
    done = [str(image_id) for image_id, answer in answers.items() if answer in TRIED_AGAIN]
    note_action(connection, actor, "retry", details={"images": done, "asked": len(images)}, affected=len(done))
    return [
        RetriedImage(
            image.id,
            image.source_type,
            image.source_id,
            image.shard,
            FailureKind.of(image.failure_kind),
            answers[image.id],
        )
        for image in images
    ]


# The job to try again: the open one, or else the last one if it failed. Jobs are not kept for ever, and an image that
# arrived with a dead URL never had one.
_IMAGES = sa.text(f"""
    SELECT a.id, a.source_type, a.source_id, a.shard, a.failure_kind, {HAS_ORIGINAL} AS has_original,
           a.processing_status = '{ImageStatus.COMPLETED}' AS completed, job.id AS job_id
    FROM unnest(CAST(:ids AS uuid[])) WITH ORDINALITY AS wanted(id, number)
    JOIN cdn_image_assets a ON a.id = wanted.id AND a.collection = :collection
    LEFT JOIN LATERAL (
        SELECT CASE WHEN {IS_OPEN} OR status = '{JobStatus.FAILED}' THEN id END AS id FROM cdn_image_jobs
        WHERE asset_id = a.id ORDER BY completed_at DESC NULLS FIRST LIMIT 1) AS job ON true
    ORDER BY wanted.number
""")


def _open_first_jobs(
    connection: sa.Connection, collection: Collection, images: Sequence[sa.Row[Any]]
) -> dict[uuid.UUID, RetryAnswer]:
    """Of images that no job tells of: from their originals, or else from their URLs while those live."""
    answers = {image.id: RetryAnswer.COMPLETED if image.completed else RetryAnswer.WAITS_FOR_URL for image in images}
    for stage in (Stage.ENCODE, Stage.DOWNLOAD):
        wanted = [
            image.id for image in images if not image.completed and bool(image.has_original) == (stage is Stage.ENCODE)
        ]
        for image_id in open_repair_jobs(connection, collection, collection.recipe, wanted, stage):
            answers[image_id] = RetryAnswer.REOPENED
    return answers
