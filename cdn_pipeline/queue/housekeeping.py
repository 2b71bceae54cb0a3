"""Housekeeping: how long finished jobs and ended runs are kept, and what becomes of them then."""

from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.queue.states import ImageStatus, JobStatus

FAILED_SHOWN = timedelta(days=7)  # then a failed job is archived
PROBES_KEPT = timedelta(days=30)
REFRESHES_KEPT = timedelta(days=30)
JOBS_KEPT = timedelta(days=90)  # finished jobs may be deleted after that, and not before: statistics count them


def archive_failed_jobs(connection: sa.Connection, limit: int) -> int:
    """Archives jobs that failed over a week ago, the oldest first; returns how many.

    An archived job counts as before, in statistics and wherever it is asked what an image has been through; `explain`
    tells it only when asked for every job.
    """
    return connection.execute(_ARCHIVE_FAILED, {"shown": FAILED_SHOWN, "limit": limit}).rowcount


_ARCHIVE_FAILED = sa.text(f"""
    UPDATE cdn_image_jobs SET archived_at = clock_timestamp(), updated_at = clock_timestamp()
    WHERE id IN (
        SELECT id FROM cdn_image_jobs
        WHERE completed_at < clock_timestamp() - CAST(:shown AS interval)
          AND status = '{JobStatus.FAILED}' AND archived_at IS NULL
        ORDER BY completed_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def delete_old_jobs(connection: sa.Connection, limit: int) -> int:
    """Deletes jobs that ended over 90 days ago, the oldest first; returns how many.

    A failure stays as long as it is the last word on something: why an image is not completed, or that a rollout is not
    to be tried again.
    """
    return connection.execute(_DELETE_OLD_JOBS, {"kept": JOBS_KEPT, "limit": limit}).rowcount


_IS_LAST_WORD = f"""j.status = '{JobStatus.FAILED}' AND (j.rollout IS NOT NULL OR EXISTS (
    SELECT FROM cdn_image_assets a
    WHERE a.id = j.asset_id AND a.processing_status <> '{ImageStatus.COMPLETED}'))"""

_DELETE_OLD_JOBS = sa.text(f"""
    DELETE FROM cdn_image_jobs
    WHERE id IN (
        SELECT id FROM cdn_image_jobs j
        WHERE completed_at < clock_timestamp() - CAST(:kept AS interval) AND NOT ({_IS_LAST_WORD})
        ORDER BY completed_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def delete_old_runs(connection: sa.Connection, limit: int) -> int:
    """Deletes runs that ended over 90 days ago; returns how many."""
    return connection.execute(_DELETE_OLD_RUNS, {"kept": JOBS_KEPT, "limit": limit}).rowcount


_DELETE_OLD_RUNS = sa.text("""
    DELETE FROM cdn_runs
    WHERE run_id IN (
        SELECT run_id FROM cdn_runs WHERE ended_at < clock_timestamp() - CAST(:kept AS interval)
        ORDER BY ended_at LIMIT :limit FOR UPDATE SKIP LOCKED)
""")


def delete_old_probes(connection: sa.Connection, limit: int) -> int:
    """Deletes probes of delivery that are over 30 days old; returns how many."""
    return connection.execute(_DELETE_OLD_PROBES, {"kept": PROBES_KEPT, "limit": limit}).rowcount


_DELETE_OLD_PROBES = sa.text("""
    DELETE FROM cdn_delivery_probes
    WHERE id IN (
        SELECT id FROM cdn_delivery_probes WHERE probed_at < clock_timestamp() - CAST(:kept AS interval)
        ORDER BY probed_at LIMIT :limit)
""")


def delete_old_refreshes(connection: sa.Connection, limit: int) -> int:
    """Deletes users' refreshes that were finished over 30 days ago; returns how many."""
    return connection.execute(_DELETE_OLD_REFRESHES, {"kept": REFRESHES_KEPT, "limit": limit}).rowcount


_DELETE_OLD_REFRESHES = sa.text("""
    DELETE FROM cdn_refreshes
    WHERE id IN (
        SELECT id FROM cdn_refreshes WHERE finished_at < clock_timestamp() - CAST(:kept AS interval)
        ORDER BY requested_at LIMIT :limit)
""")


def delete_superseded_renditions(connection: sa.Connection, grace: timedelta, limit: int) -> list[tuple[str, int]]:
    """Deletes the rows of renditions that were superseded longer ago than the grace period, the oldest first.

    Returns path and bytes of each row; two may have the same path. What no other row has of these may go from the
    store: `references.mark_unreferenced` in the same transaction.
    """
    rows = connection.execute(_DELETE_SUPERSEDED, {"grace": grace, "limit": limit})
    return [(row.path, row.file_size) for row in rows]


_DELETE_SUPERSEDED = sa.text("""
    DELETE FROM cdn_image_renditions
    WHERE id IN (
        SELECT id FROM cdn_image_renditions
        WHERE state = 'superseded' AND superseded_at < clock_timestamp() - CAST(:grace AS interval)
        ORDER BY superseded_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    RETURNING path, file_size
""")
