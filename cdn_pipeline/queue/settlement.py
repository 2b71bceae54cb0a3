"""Settlement: outcomes are written in batches, and only while the lease is held."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.erasures import note_late_objects
from cdn_pipeline.queue.leases import BUSY_IN_HAND, Run, back_to_download
from cdn_pipeline.queue.outcomes import EFFECTS, NewRendition, Outcome, Verdict
from cdn_pipeline.queue.references import lock_references, removals
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage

_REMOVAL_TAKES = timedelta(minutes=1)  # of a batch, seconds


def settle(connection: sa.Connection, run: Run, outcomes: Sequence[Outcome]) -> set[uuid.UUID]:
    """Writes outcomes of jobs that the run still holds; returns the ids of those jobs.

    An outcome whose lease was lost is dropped: whoever holds the job now writes its own; if its image was erased, what
    it has stored is noted for the erasure. All sizes of an image become
    current together, in the caller's transaction. If the image's identity changed while it was in hand, the job stays
    open for the new one, and the picture is published all the same if nothing is visible (an older picture beats none).
    If something is, it stays: it may be the very picture that the image shows again. The job also stays open for a
    better rank, and for a fresh URL when the outcome would have been to wait for one.

    A rollout that fails is no failure of the image: it was completed before, so it is completed again.

    An attempt that put something which clean-up may have removed since is as good as never made: its job is due again,
    and not among those returned.
    """
    if not outcomes:
        return set()
    stored = {outcome.job_id: outcome.objects for outcome in outcomes}
    overtaken = _overtaken(connection, outcomes)
    outcomes = [_made_anew(outcome) if outcome.job_id in overtaken else outcome for outcome in outcomes]
    # A run that slept through its lease may have claimed the same job again: the later outcome counts.
    latest = {outcome.job_id: outcome for outcome in outcomes}
    rows = json.dumps([_row(outcome) for outcome in latest.values()])
    held = {row.job_id: row.outdated for row in connection.execute(_SETTLE, {"rows": rows, "run_id": run.run_id})}
    _settle_renditions(connection, [outcome for job_id, outcome in latest.items() if held.get(job_id) is False])
    _settle_outdated(connection, [outcome for job_id, outcome in latest.items() if held.get(job_id) is True])
    note_late_objects(connection, {job_id: stored[job_id] for job_id in stored.keys() - held.keys()})
    return set(held) - overtaken


def _overtaken(connection: sa.Connection, outcomes: Sequence[Outcome]) -> set[uuid.UUID]:
    """Jobs of which an outcome put something that may have been removed since. `references` explains."""
    put = [reference for outcome in outcomes for reference in outcome.objects]
    if not put:
        return set()
    lock_references(connection)
    removed = removals(connection, put)
    return {outcome.job_id for outcome in outcomes if removed.overtake(outcome.objects, outcome.claimed_at)}


def _made_anew(outcome: Outcome) -> Outcome:
    return replace(
        outcome,
        verdict=Verdict.RELEASED,
        stage=Stage.DOWNLOAD if outcome.original else Stage.ENCODE,
        retry_in_seconds=_REMOVAL_TAKES.total_seconds(),
        original=None,
        renditions=(),
    )


def _row(outcome: Outcome) -> dict[str, Any]:
    job_status, image_status = EFFECTS[outcome.verdict]
    original = outcome.original
    return {
        "job_id": str(outcome.job_id),
        "asset_id": str(outcome.asset_id),
        "verdict": outcome.verdict,
        "job_status": job_status,
        "image_status": image_status,
        "stage": outcome.stage,
        "identity": outcome.identity,
        "attempted_url": outcome.source_url,
        "failure": outcome.failure,
        "detail": _text(outcome.detail, 1000),
        "retry_in": outcome.retry_in_seconds,
        "download_ms": outcome.download_ms,
        "transcode_ms": outcome.transcode_ms,
        "upload_ms": outcome.upload_ms,
        "total_ms": outcome.total_ms,
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "placeholder": outcome.placeholder,
        "original_sha256": original and original.sha256,
        "original_identity": original and original.identity,
        "original_rank": original and original.rank,
        "original_size": original and original.file_size,
        "original_format": original and original.format,
        "original_width": original and original.width,
        "original_height": original and original.height,
        "content_type": original and _text(original.content_type, 50),
        "etag": original and _whole(original.etag, 255),
        "last_modified": original and _whole(original.last_modified, 64),
    }


def _whole(validator: str | None, length: int) -> str | None:
    """A validator that fits: one that was cut would never match."""
    return _text(validator, length) if validator and len(validator) <= length else None


def _text(words: str | None, length: int) -> str | None:
    """What Postgres takes of words that came from elsewhere: neither NUL nor half a surrogate pair."""
    return (words or "").encode("utf-8", "replace").decode().replace("\x00", "")[:length] or None


_ROWS = """jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(
    job_id uuid, asset_id uuid, verdict text, job_status text, image_status text, stage text, identity text,
    attempted_url text, failure text, detail text, retry_in float8, download_ms int, transcode_ms int, upload_ms int,
    total_ms int, bytes_in bigint, bytes_out bigint, original_sha256 text, original_identity text, original_rank int,
    original_size int, original_format text, original_width int, original_height int, content_type text, etag text,
    last_modified text, placeholder text)"""

# A rollout is opened for completed images only, and whatever else would change the picture waits for its end: what the
# collection's own recipe made is still current. The original tells the next look whether another attempt is worth it.
_ROLLOUT_FAILED = f"(j.rollout IS NOT NULL AND job_status = '{JobStatus.FAILED}')"

# While an image was in hand, discovery may have moved it. The job then goes back to the start instead of ending, if
# there is something new to fetch: another picture, a better rank of the same one, or the fresh URL that a refused image
# would wait for. (The job's own URL does not tell: a run that slept may have claimed it again since the attempt.)
_MOVED = "o.attempted_url <> a.source_url"
_NEW_PICTURE = "a.identity <> o.identity"
_OUTDATED = f"""({_NEW_PICTURE} AND (coalesce(a.original_identity = a.identity, false) OR EXISTS (
    SELECT FROM cdn_image_renditions r WHERE r.asset_id = a.id AND r.state = 'current')))"""
_BETTER_PICTURE = f"""{_MOVED} AND a.rank > coalesce(o.original_rank, a.original_rank)
    AND (job_status = '{JobStatus.COMPLETED}' OR {_ROLLOUT_FAILED}
         OR job_status = '{JobStatus.QUEUED}' AND o.stage <> '{Stage.DOWNLOAD}')"""
_FRESH_URL = f"{_MOVED} AND verdict = '{Verdict.WAITING}' AND j.rollout IS NULL"

_GOES_BACK = f"(superseded OR job_status = '{JobStatus.QUEUED}' AND o.stage = '{Stage.DOWNLOAD}')"

# Also kept when a passing failure follows a 404: the picture is gone if the fresh URL gives 404 as well, however many
# attempts that takes. (A new picture's failure was cleared when it was discovered. That the original is missing is what
# the next attempt has to know.)
_KEEPS_FAILURE = f"""new_picture OR verdict = '{Verdict.RELEASED}'
    OR verdict = '{Verdict.RETRYING}' AND failure <> '{FailureKind.ORIGINAL_MISSING}'
       AND a.failure_kind IN ('{FailureKind.SOURCE_URL_404}', '{FailureKind.SOURCE_GONE}')"""

# Columns of the image, and where they come from when an original was stored.
_OF_THE_ORIGINAL = {
    "original_sha256": "original_sha256",
    "original_identity": "original_identity",
    "original_rank": "original_rank",
    "original_file_size": "original_size",
    "original_format": "original_format",
    "source_etag": "etag",
    "source_last_modified": "last_modified",
}
_KNOWN_WHEN_DECODED = {
    "original_width": "original_width",
    "original_height": "original_height",
    "source_content_type": "content_type",
}


def placeholder_sql(original_sha256: str) -> str:
    """SQL: the placeholder of an image `a` that is about to show `o`, made of this original.

    What `o` does not tell stays as it is if it is of the picture that is visible already.
    """
    return f"""coalesce(o.placeholder, CASE WHEN EXISTS (
        SELECT FROM cdn_image_renditions r
        WHERE r.asset_id = a.id AND r.state = 'current' AND r.original_sha256 = {original_sha256}
    ) THEN a.placeholder END)"""


_PLACEHOLDER = f"""CASE WHEN verdict = '{Verdict.PUBLISHED}' AND NOT outdated
    THEN {placeholder_sql("coalesce(o.original_sha256, a.original_sha256)")} ELSE a.placeholder END"""

# The image's row is locked before it is read, so that a discovery that commits at the same time is either seen here or
# sees the end of the job. Discovery locks in the same order.
_SETTLE = sa.text(f"""
    WITH held AS (
        SELECT o.*, a.source_url, a.url_expires_at, {_NEW_PICTURE} AS new_picture, {_OUTDATED} AS outdated,
               coalesce({_NEW_PICTURE} OR {_BETTER_PICTURE} OR {_FRESH_URL}, false) AS superseded,
               {_ROLLOUT_FAILED} AS rollout_failed, a.original_sha256 AS known_original
        FROM {_ROWS}
        JOIN cdn_image_jobs j ON j.id = o.job_id AND j.status = '{JobStatus.PROCESSING}' AND j.run_id = :run_id
        JOIN cdn_image_assets a ON a.id = o.asset_id
        ORDER BY a.id FOR UPDATE OF j, a
    ), jobs AS (
        UPDATE cdn_image_jobs AS j
        SET status = CASE WHEN superseded THEN '{JobStatus.QUEUED}' ELSE job_status END,
            stage = CASE WHEN superseded THEN '{Stage.DOWNLOAD}' ELSE o.stage END,
            {back_to_download(_GOES_BACK)},
            source_url = CASE WHEN superseded OR job_status = '{JobStatus.QUEUED}' THEN o.source_url
                              ELSE j.source_url END,
            deadline = o.url_expires_at,
            retry_count = CASE WHEN superseded OR verdict = '{Verdict.ADVANCED}' THEN 0
                               WHEN verdict = '{Verdict.RETRYING}' THEN retry_count + 1 ELSE retry_count END,
            next_attempt_at = clock_timestamp() + make_interval(secs => CASE WHEN superseded THEN 0 ELSE retry_in END),
            completed_at = CASE WHEN NOT superseded AND job_status <> '{JobStatus.QUEUED}' THEN clock_timestamp() END,
            failure_kind = CASE WHEN verdict = '{Verdict.RELEASED}' THEN failure_kind ELSE failure END,
            error_message = CASE WHEN verdict = '{Verdict.RELEASED}' THEN error_message ELSE detail END,
            error_details = CASE WHEN rollout_failed AND NOT superseded
                                 THEN jsonb_build_object('original', known_original)
                                 ELSE error_details END,
            download_ms = coalesce(o.download_ms, j.download_ms),
            transcode_ms = coalesce(o.transcode_ms, j.transcode_ms), upload_ms = coalesce(o.upload_ms, j.upload_ms),
            bytes_in = coalesce(o.bytes_in, j.bytes_in), bytes_out = coalesce(o.bytes_out, j.bytes_out),
            processing_duration_ms = CASE WHEN verdict = '{Verdict.RELEASED}' THEN processing_duration_ms
                                          ELSE total_ms END,
            busy = j.busy + {BUSY_IN_HAND}, lease_until = NULL, updated_at = clock_timestamp(),
            run_id = CASE WHEN verdict = '{Verdict.RELEASED}' THEN NULL ELSE run_id END
        FROM held AS o WHERE j.id = o.job_id
    ), images AS (
        UPDATE cdn_image_assets AS a
        SET processing_status = CASE WHEN superseded THEN '{ImageStatus.PENDING}'
                                     WHEN rollout_failed THEN '{ImageStatus.COMPLETED}' ELSE image_status END,
            processing_completed_at = CASE WHEN image_status = '{ImageStatus.COMPLETED}' THEN clock_timestamp()
                                           ELSE processing_completed_at END,
            processing_attempts = CASE WHEN rollout_failed OR image_status = '{ImageStatus.COMPLETED}' THEN 0
                                       WHEN verdict = '{Verdict.RELEASED}' THEN greatest(processing_attempts - 1, 0)
                                       ELSE processing_attempts END,
            failure_kind = CASE WHEN {_KEEPS_FAILURE} THEN a.failure_kind
                                WHEN rollout_failed THEN NULL ELSE failure END,
            processing_error = CASE WHEN {_KEEPS_FAILURE} THEN processing_error
                                    WHEN rollout_failed THEN NULL ELSE detail END,
            needs_update = needs_update AND (superseded OR image_status <> '{ImageStatus.COMPLETED}'),
            {
    ", ".join(
        f"{column} = CASE WHEN outdated OR o.original_sha256 IS NULL THEN a.{column} ELSE o.{value} END"
        for column, value in _OF_THE_ORIGINAL.items()
    )
},
            {
    ", ".join(
        f"{column} = CASE WHEN outdated THEN a.{column} ELSE coalesce(o.{value}, a.{column}) END"
        for column, value in _KNOWN_WHEN_DECODED.items()
    )
},
            placeholder = {_PLACEHOLDER},
            download_time_ms = coalesce(o.download_ms, a.download_time_ms),
            processing_time_ms = coalesce(o.transcode_ms, a.processing_time_ms),
            upload_time_ms = coalesce(o.upload_ms, a.upload_time_ms),
            total_processing_time_ms = CASE WHEN verdict = '{Verdict.RELEASED}' THEN total_processing_time_ms
                                            ELSE total_ms END,
            updated_at = clock_timestamp()
        FROM held AS o WHERE a.id = o.asset_id
    )
    SELECT job_id, outdated FROM held
""")


def _settle_renditions(connection: sa.Connection, outcomes: Sequence[Outcome]) -> None:
    new = [
        {**_rendition_row(rendition), "asset_id": str(outcome.asset_id)}
        for outcome in outcomes
        for rendition in outcome.renditions
    ]
    outlived = [
        outcome.asset_id for outcome in outcomes if outcome.renditions or outcome.verdict in _NOTHING_TO_PUBLISH
    ]
    if outlived:
        connection.execute(_DISCARD_UNPUBLISHED, {"asset_ids": outlived})
    if new:
        connection.execute(_STORE_RENDITIONS, {"rows": json.dumps(new)})
    published = [outcome.asset_id for outcome in outcomes if outcome.verdict is Verdict.PUBLISHED]
    if published:
        connection.execute(_SUPERSEDE, {"asset_ids": published})
        connection.execute(_MAKE_CURRENT, {"asset_ids": published})


def _settle_outdated(connection: sa.Connection, outcomes: Sequence[Outcome]) -> None:
    """Notes what was stored, for clean-up, and publishes nothing."""
    if outcomes:
        unpublished = [replace(outcome, verdict=Verdict.ADVANCED) for outcome in outcomes]
        _settle_renditions(connection, unpublished)
        connection.execute(_DISCARD_UNPUBLISHED, {"asset_ids": [outcome.asset_id for outcome in outcomes]})


_NOTHING_TO_PUBLISH = frozenset({Verdict.UNCHANGED, Verdict.WAITING, Verdict.FAILED})


def _rendition_row(rendition: NewRendition) -> dict[str, Any]:
    return {name: getattr(rendition, name) for name in NewRendition.__slots__}


# Left over from an attempt that ended before publishing: clean-up takes them like any superseded rendition.
_DISCARD_UNPUBLISHED = sa.text("""
    UPDATE cdn_image_renditions SET state = 'superseded', superseded_at = clock_timestamp()
    WHERE asset_id = ANY(:asset_ids) AND state = 'stored'
""")

# A rendition that is visible stays visible: made again, byte for byte, it is the same object.
_STORE_RENDITIONS = sa.text("""
    INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash, path,
                                      original_sha256, recipe, recipe_version, encoder, state)
    SELECT asset_id, size_name, format, width, height, file_size, content_hash, path, original_sha256, recipe,
           recipe_version, encoder, 'stored'
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(
        asset_id uuid, size_name text, format text, width int, height int, file_size int, content_hash text,
        path text, original_sha256 text, recipe text, recipe_version int, encoder text)
    ON CONFLICT (asset_id, path) DO UPDATE
    SET original_sha256 = excluded.original_sha256, recipe = excluded.recipe,
        recipe_version = excluded.recipe_version, encoder = excluded.encoder, superseded_at = NULL,
        state = CASE cdn_image_renditions.state WHEN 'current' THEN 'current' ELSE 'stored' END
""")

# What was made last stands as 'stored'; per size and format it takes the place of what is current. What other recipes
# made of an earlier original goes with it: a browser that prefers their format would show the old picture.
_SUPERSEDE = sa.text("""
    UPDATE cdn_image_renditions AS old SET state = 'superseded', superseded_at = clock_timestamp()
    FROM cdn_image_assets a
    WHERE asset_id = ANY(:asset_ids) AND a.id = asset_id AND state = 'current' AND (
        old.original_sha256 <> a.original_sha256 OR EXISTS (
            SELECT FROM cdn_image_renditions AS new
            WHERE new.asset_id = old.asset_id AND new.size_name = old.size_name AND new.format = old.format
              AND new.state = 'stored'))
""")

_MAKE_CURRENT = sa.text("""
    UPDATE cdn_image_renditions SET state = 'current', published_at = clock_timestamp()
    WHERE asset_id = ANY(:asset_ids) AND state = 'stored'
""")
