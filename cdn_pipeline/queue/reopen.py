"""Opens jobs because an operator asked for it, not because a source changed."""

from collections.abc import Sequence

import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, REENCODE_PRIORITY, Collection
from cdn_pipeline.queue.intake import IS_OPEN, JOB_COLUMNS, job_defaults
from cdn_pipeline.queue.states import ImageStatus, JobType, Stage


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
    recipe = collection.recipe
    return connection.execute(
        _OPEN_AGAIN,
        {
            **job_defaults(collection),
            "collection": collection.name,
            "shards": list(shards),
            "owners": list(owner_ids) if owner_ids is not None else None,
            "limit": limit,
            "force": force,
            "from_originals": from_originals,
            "stage": Stage.ENCODE if from_originals else Stage.DOWNLOAD,
            "priority": REENCODE_PRIORITY if from_originals else BACKFILL_PRIORITY,
            "recipe": recipe.name,
            "recipe_version": recipe.version,
            "size_count": len(recipe.sizes),
        },
    ).rowcount


_OPEN_AGAIN = sa.text(f"""
    WITH wanted AS (
        SELECT a.id, a.processing_status = '{ImageStatus.COMPLETED}' AS completed FROM cdn_image_assets a
        WHERE a.collection = :collection AND a.shard = ANY(:shards)
          AND a.processing_status IN ('{ImageStatus.COMPLETED}', '{ImageStatus.FAILED}', '{ImageStatus.PENDING}')
          AND NOT EXISTS (SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND {IS_OPEN})
          AND (CAST(:owners AS text[]) IS NULL OR a.owner_id = ANY(:owners))
          AND CASE WHEN :from_originals THEN a.original_identity = a.identity
                   ELSE a.processing_status = '{ImageStatus.FAILED}'
                        OR coalesce(a.url_expires_at > clock_timestamp(), true) END
          AND (:force OR :size_count > (
              SELECT count(*) FROM cdn_image_renditions r
              WHERE r.asset_id = a.id AND r.state = 'current' AND r.recipe = :recipe
                AND r.recipe_version = :recipe_version))
        ORDER BY a.id LIMIT :limit FOR UPDATE
    ), reopened AS (
        UPDATE cdn_image_assets a
        SET processing_status = '{ImageStatus.PENDING}', processing_attempts = 0, failure_kind = NULL,
            processing_error = NULL, updated_at = clock_timestamp()
        FROM wanted WHERE a.id = wanted.id
        RETURNING a.*, completed
    )
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS}, stage, force)
    SELECT id, collection, shard, CASE WHEN completed THEN '{JobType.UPDATE}' ELSE '{JobType.RETRY}' END, :priority,
           source_url, url_expires_at, :sizes, :format, :stage, :force
    FROM reopened
    ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
""")
