"""What the nightly run adds to the queue: retries before their time, and questions that a source may answer by now."""

from collections.abc import Sequence
from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.intake import IS_OPEN, JOB_COLUMNS, job_defaults
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType, Stage

CHECKED_LATELY = timedelta(hours=20)  # less than from one night to the next, however long the night's runs take


def release_retries(connection: sa.Connection, collection: Collection, shards: Sequence[str]) -> int:
    """Makes jobs due now that wait for a later attempt; returns how many.

    Their attempts go on counting. Held jobs and jobs in hand are left alone.
    """
    return connection.execute(_RELEASE_RETRIES, {"collection": collection.name, "shards": list(shards)}).rowcount


_RELEASE_RETRIES = sa.text(f"""
    UPDATE cdn_image_jobs SET next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE collection = :collection AND shard = ANY(:shards) AND status = '{JobStatus.QUEUED}' AND held_at IS NULL
      AND next_attempt_at > clock_timestamp()
""")


# A ban, a maintenance page or a captive portal refuses every URL and passes, while the URLs live for days. What a
# signature or a 404 refuses stays refused.
_MAY_PASS = (
    FailureKind.SOURCE_FORBIDDEN,
    FailureKind.NOT_AN_IMAGE,
    FailureKind.TOO_MANY_REDIRECTS,
    FailureKind.BLOCKED_ADDRESS,
)
REFUSED_LATELY = timedelta(hours=2)  # a night's run that is repeated asks nothing twice


def reopen_refused(connection: sa.Connection, collection: Collection, shards: Sequence[str]) -> int:
    """Opens jobs for images that wait for a fresh URL although theirs lives, where the refusal may have passed.

    Returns how many. Images that were removed or were tried within `REFUSED_LATELY` are left alone.
    """
    return connection.execute(
        _REOPEN_REFUSED,
        {
            **job_defaults(collection),
            "collection": collection.name,
            "shards": list(shards),
            "may_pass": list(_MAY_PASS),
            "refused_lately": REFUSED_LATELY,
            "priority": BACKFILL_PRIORITY,
        },
    ).rowcount


_HAS_NO_OPEN_JOB = f"NOT EXISTS (SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND {IS_OPEN})"
_URL_LIVES = "coalesce(a.url_expires_at > clock_timestamp(), true)"

_REOPEN_REFUSED = sa.text(f"""
    WITH refused AS (
        SELECT a.* FROM cdn_image_assets a
        WHERE a.collection = :collection AND a.shard = ANY(:shards)
          AND a.processing_status = '{ImageStatus.PENDING}' AND a.removed_at IS NULL
          AND a.failure_kind = ANY(:may_pass) AND {_URL_LIVES}
          AND a.processing_started_at <= clock_timestamp() - CAST(:refused_lately AS interval)
          AND {_HAS_NO_OPEN_JOB}
        ORDER BY a.id FOR UPDATE
    )
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS}, stage)
    SELECT id, collection, shard, '{JobType.RETRY}', :priority, source_url, url_expires_at, :sizes, :format,
           '{Stage.DOWNLOAD}'
    FROM refused
    ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
""")


def open_checks(connection: sa.Connection, collection: Collection, shards: Sequence[str]) -> int:
    """Opens jobs that ask the source whether a picture is still the published one; returns how many.

    Only where the URL does not tell: its identity is the URL itself, not the picture's name. (Instagram's identities
    name the picture; asking for those again would be 156,000 requests a night for nothing.) And only where the answer
    is cheap: the stored original is what this URL gave, with an ETag or Last-Modified. Images that were removed, whose
    URL is dead, that have an open job or that were completed within `CHECKED_LATELY` are not asked for.
    """
    return connection.execute(
        _OPEN_CHECKS,
        {
            **job_defaults(collection),
            "collection": collection.name,
            "shards": list(shards),
            "checked_lately": CHECKED_LATELY,
            "priority": BACKFILL_PRIORITY,
        },
    ).rowcount


_OPEN_CHECKS = sa.text(f"""
    WITH wanted AS (
        SELECT a.id FROM cdn_image_assets a
        WHERE a.collection = :collection AND a.shard = ANY(:shards)
          AND a.processing_status IN ('{ImageStatus.COMPLETED}', '{ImageStatus.PENDING}') AND a.removed_at IS NULL
          AND starts_with(a.identity, 'url:')
          AND (a.original_identity, a.original_rank) = (a.identity, a.rank)
          AND coalesce(a.source_etag, a.source_last_modified) IS NOT NULL
          AND {_URL_LIVES}
          AND a.processing_completed_at <= clock_timestamp() - CAST(:checked_lately AS interval)
          AND {_HAS_NO_OPEN_JOB}
        ORDER BY a.id FOR UPDATE
    ), reopened AS (
        UPDATE cdn_image_assets a
        SET processing_status = '{ImageStatus.PENDING}', processing_attempts = 0,
            failure_kind = CASE WHEN a.processing_status = '{ImageStatus.PENDING}' THEN a.failure_kind END,
            processing_error = NULL, updated_at = clock_timestamp()
        FROM wanted WHERE a.id = wanted.id
        RETURNING a.*
    )
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS}, stage)
    SELECT id, collection, shard, '{JobType.UPDATE}', :priority, source_url, url_expires_at, :sizes, :format,
           '{Stage.DOWNLOAD}'
    FROM reopened
    ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
""")
