"""Failed jobs, the latest first, page by page: what operators look through before they retry."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.states import JobStatus


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A job that failed for good or waits for a fresh URL. Without its source URL: that is signed."""

    id: uuid.UUID
    image_id: uuid.UUID | None  # None: the image was erased
    image_status: str | None
    owner_id: str | None
    source_type: str | None
    media_id: str | None
    job_type: str
    stage: str
    priority: int
    host: str
    kind: str  # as the catalog names it: perhaps none of this version's
    error: str | None
    retries: int
    run_id: str | None
    created_at: datetime
    failed_at: datetime

    @property
    def place(self) -> "Place":
        """Where the next page begins if this is the last of one."""
        return Place(self.failed_at, self.id)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the list: behind the job of this time and id."""

    failed_at: datetime
    id: uuid.UUID


def failed_jobs(
    connection: sa.Connection,
    collection: Collection,
    *,
    limit: int,
    kind: FailureKind | None = None,
    after: Place | None = None,
) -> Sequence[FailedJob]:
    """The failed jobs of the last week (older ones are archived), the latest first; only those of `kind`, if given."""
    values = {
        "collection": collection.name,
        "kind": kind,
        "limit": limit,
        "failed_at": after.failed_at if after else None,
        "id": after.id if after else None,
    }
    return [FailedJob(**row) for row in connection.execute(_FAILED, values).mappings()]


_KIND = f"coalesce(j.failure_kind, '{FailureKind.INTERNAL_ERROR}')"

_FAILED = sa.text(f"""
    SELECT j.id, j.asset_id AS image_id, a.processing_status AS image_status, a.owner_id, a.source_type, a.media_id,
           j.job_type, j.stage, j.priority, j.host, {_KIND} AS kind, j.error_message AS error, j.retry_count AS retries,
           j.run_id, j.created_at, j.completed_at AS failed_at
    FROM cdn_image_jobs j LEFT JOIN cdn_image_assets a ON a.id = j.asset_id
    WHERE j.collection = :collection AND j.status = '{JobStatus.FAILED}' AND j.archived_at IS NULL
      AND (CAST(:kind AS text) IS NULL OR {_KIND} = :kind)
      AND (CAST(:failed_at AS timestamptz) IS NULL OR (j.completed_at, j.id) < (:failed_at, CAST(:id AS uuid)))
    ORDER BY j.completed_at DESC, j.id DESC LIMIT :limit
""")
