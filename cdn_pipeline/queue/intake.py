"""Intake: writes what discovery found into the catalog, and opens a job for every image that becomes due."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import REENCODE_PRIORITY, Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType, Stage
from cdn_pipeline.queue.tombstones import Candidate, kept_out
from cdn_pipeline.sources.discovery import MOVED, Change, ImageKey, KnownImage, Sighting
from cdn_pipeline.sources.instagram import SourceUrl

IS_OPEN = f"status IN ('{JobStatus.QUEUED}', '{JobStatus.PROCESSING}')"


def lock_images(connection: sa.Connection, keys: Sequence[ImageKey]) -> dict[ImageKey, str]:
    """Keeps these images and their open jobs as they are until the transaction ends; returns the images' versions.

    For a second look at images that are about to be overwritten: two runs that compare at the same time would
    otherwise write in any order, and the older URL could win. Only those have to be looked at again that are gone or
    have another version than `KnownImage.version`. Jobs first, in the order of their images, as everywhere else.
    """
    if not keys:
        return {}
    wanted = {"keys": _keys_as_json(keys)}
    connection.execute(_LOCK_JOBS, wanted)
    return {ImageKey(*key): version for *key, version in connection.execute(_LOCK_IMAGES, wanted).all()}


def known_images(connection: sa.Connection, keys: Sequence[ImageKey]) -> dict[ImageKey, KnownImage]:
    """What the catalog knows of these images, in one round trip."""
    rows = connection.execute(_KNOWN, {"keys": _keys_as_json(keys)}).mappings()
    return {ImageKey(row["source_type"], row["source_id"], row["media_id"]): _known_image(row) for row in rows}


def _keys_as_json(keys: Sequence[ImageKey]) -> str:
    return json.dumps(
        [{"source_type": key.source_type, "source_id": key.source_id, "media_id": key.media_id} for key in keys]
    )


# `json` here and below: it is read once, so to make a `jsonb` of it first takes a tenth longer.
_WANTED = """json_to_recordset(CAST(:keys AS json)) AS k(source_type text, source_id text, media_id text)
    JOIN cdn_image_assets a USING (source_type, source_id, media_id)"""

# The transaction that wrote the row as it is: every other writing has another, and a lock leaves it alone.
_VERSION = "CAST(a.xmin AS text) AS version"

_LOCK_JOBS = sa.text(f"""
    SELECT FROM {_WANTED} JOIN cdn_image_jobs j ON j.asset_id = a.id AND {IS_OPEN}
    ORDER BY a.id FOR NO KEY UPDATE OF j
""")

_LOCK_IMAGES = sa.text(f"""
    SELECT a.source_type, a.source_id, a.media_id, {_VERSION} FROM {_WANTED} ORDER BY a.id FOR NO KEY UPDATE OF a
""")

_KNOWN = sa.text(f"""
    SELECT a.source_type, a.source_id, a.media_id, a.identity, a.rank, a.source_url, a.url_expires_at,
           a.fallback_urls, a.observed_at, a.original_identity, a.original_rank, {_VERSION},
           a.processing_status = '{ImageStatus.FAILED}' AS failed,
           a.processing_status = '{ImageStatus.PENDING}' AND NOT EXISTS (
               SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND {IS_OPEN}) AS waiting
    FROM {_WANTED}
""")


def _known_image(row: sa.RowMapping) -> KnownImage:
    current = SourceUrl(
        url=row["source_url"], identity=row["identity"], rank=row["rank"], expires_at=row["url_expires_at"]
    )
    return KnownImage(
        identity=row["identity"],
        rank=row["rank"],
        candidates=(current, *(_from_json(fallback) for fallback in row["fallback_urls"])),
        observed_at=row["observed_at"],
        original_identity=row["original_identity"],
        original_rank=row["original_rank"],
        waiting=row["waiting"],
        failed=row["failed"],
        version=row["version"],
    )


def _from_json(url: Mapping[str, Any]) -> SourceUrl:
    expires_at = url["expires_at"] and datetime.fromisoformat(url["expires_at"])
    return SourceUrl(url=url["url"], identity=url["identity"], rank=url["rank"], expires_at=expires_at)


def _to_json(url: SourceUrl) -> dict[str, Any]:
    expires_at = url.expires_at and url.expires_at.isoformat()
    return {"url": url.url, "identity": url.identity, "rank": url.rank, "expires_at": expires_at}


_TO_WRITE = MOVED | {Change.NEW}


def record(connection: sa.Connection, collection: Collection, sightings: Sequence[Sighting]) -> int:
    """Writes new and changed images and URLs signed again, and opens their jobs; returns how many jobs opened.

    Running it twice, or in two runs at once, changes nothing more. What a tombstone keeps out is left out.
    """
    to_write = [sighting for sighting in sightings if sighting.change in _TO_WRITE]
    erased = kept_out(connection, collection, [Candidate.of(sighting.reference) for sighting in to_write])
    admitted = [sighting for sighting in to_write if sighting.reference.key not in erased]
    return record_admitted(connection, collection, admitted)


def record_admitted(
    connection: sa.Connection, collection: Collection, sightings: Sequence[Sighting], *, of_rows: bool = False
) -> int:
    """As `record`, of images that `tombstones.kept_out` has let in within this very transaction.

    Args:
        connection: the transaction.
        collection: that of the images.
        sightings: what `kept_out` did not name; it is not asked again.
        of_rows: they are of source rows, and what is overwritten counts as sighted now (`presence`).
    """
    new = [sighting for sighting in sightings if sighting.change is Change.NEW]
    moved = [sighting for sighting in sightings if sighting.change in MOVED]
    opened = 0
    if new:
        opened += _insert_new(connection, collection, new)
    if moved:
        opened += _update_moved(connection, collection, moved, of_rows=of_rows)
    return opened


def _insert_new(connection: sa.Connection, collection: Collection, sightings: Sequence[Sighting]) -> int:
    rows = [_row(collection, sighting) for sighting in sightings]
    return connection.execute(_INSERT_NEW, {"rows": json.dumps(rows), **job_defaults(collection)}).rowcount


def _update_moved(
    connection: sa.Connection, collection: Collection, sightings: Sequence[Sighting], *, of_rows: bool
) -> int:
    rows = json.dumps([_row(collection, sighting) for sighting in sightings])
    unfinished = connection.execute(_MOVE_IMAGES, {"rows": rows, "of_rows": of_rows}).mappings().all()
    if not unfinished:
        return 0  # the rule when everything was signed again: three statements would look for jobs in vain
    moved = {"moved": json.dumps([dict(image) for image in unfinished])}
    connection.execute(_FOLLOW_OPEN_JOBS, {**moved, **job_defaults(collection)})
    connection.execute(_HURRY_JOBS_IN_HAND, moved)
    return connection.execute(_OPEN_JOBS, {**moved, **job_defaults(collection)}).rowcount


def job_defaults(collection: Collection, recipe: Recipe | None = None) -> dict[str, Any]:
    """What a new job says of its renditions: those of the collection's own recipe, or of another one."""
    recipe = recipe or collection.recipe
    return {"sizes": recipe.longest_sides, "format": recipe.format}


def _row(collection: Collection, sighting: Sighting) -> dict[str, Any]:
    reference, best = sighting.reference, sighting.best
    return {
        "collection": collection.name,
        "shard": reference.shard,
        "owner_id": reference.owner_id,
        "source_type": reference.key.source_type,
        "source_id": reference.key.source_id,
        "media_id": reference.key.media_id,
        "taken_at": reference.taken_at and reference.taken_at.isoformat(),
        "source_url": best.url,
        "fallback_urls": [_to_json(url) for url in sighting.candidates[1:]],
        "identity": best.identity,
        "rank": best.rank,
        "url_expires_at": best.expires_at and best.expires_at.isoformat(),
        "observed_at": reference.observed_at.isoformat(),
        "priority": collection.priorities[reference.key.source_type],
        "changed": sighting.change is Change.CHANGED,
        "alive": sighting.alive,
    }


_ROWS = """json_to_recordset(CAST(:rows AS json)) AS o(
    collection text, shard text, owner_id text, source_type text, source_id text, media_id text, taken_at timestamptz,
    source_url text, fallback_urls jsonb, identity text, rank int, url_expires_at timestamptz, observed_at timestamptz,
    priority int, changed bool, alive bool)"""

JOB_COLUMNS = """asset_id, collection, shard, job_type, priority, source_url, deadline, target_sizes, output_format"""

_DEAD_ON_ARRIVAL = f"CASE WHEN NOT alive THEN '{FailureKind.SOURCE_URL_EXPIRED}' END"

# Strictly, without the tolerance of `alive`: what expired a minute before we saw it was not lost on our watch.
_LIVES_NOW = "coalesce(o.url_expires_at > clock_timestamp(), true)"

_INSERT_NEW = sa.text(f"""
    WITH o AS (SELECT * FROM {_ROWS}), inserted AS (
        INSERT INTO cdn_image_assets (collection, shard, owner_id, source_type, source_id, media_id, taken_at,
            source_url, fallback_urls, identity, rank, url_expires_at, observed_at, seen_alive, failure_kind)
        SELECT collection, shard, owner_id, source_type, source_id, media_id, taken_at, source_url, fallback_urls,
               identity, rank, url_expires_at, observed_at, {_LIVES_NOW}, {_DEAD_ON_ARRIVAL}
        FROM o ON CONFLICT (source_type, source_id, media_id) DO NOTHING
        RETURNING id, source_type, source_id, media_id
    )
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS})
    SELECT inserted.id, collection, shard, '{JobType.INGEST}', priority, source_url, url_expires_at, :sizes, :format
    FROM inserted JOIN o USING (source_type, source_id, media_id) WHERE alive
""")

# A queued job follows its image's URL; one in hand is put right when its outcome is written or its lease ends. A new
# picture is not encoded from the stored original, so a job that was to do so becomes an ordinary one, which no paused
# rollout holds up.
_WAS_TO_ENCODE_AGAIN = f"(j.rollout IS NOT NULL OR j.priority = {REENCODE_PRIORITY})"

_MOVED = """json_to_recordset(CAST(:moved AS json)) AS o(id uuid, changed bool, alive bool, priority int)"""

_FOLLOW_OPEN_JOBS = sa.text(f"""
    UPDATE cdn_image_jobs AS j
    SET source_url = a.source_url, deadline = a.url_expires_at, updated_at = clock_timestamp(),
        stage = CASE WHEN changed THEN '{Stage.DOWNLOAD}' ELSE stage END,
        rollout = CASE WHEN changed THEN NULL ELSE rollout END,
        target_sizes = CASE WHEN changed THEN CAST(:sizes AS int[]) ELSE target_sizes END,
        output_format = CASE WHEN changed THEN :format ELSE output_format END,
        priority = CASE WHEN changed THEN least(j.priority, o.priority) ELSE j.priority END,
        held_at = CASE WHEN changed AND {_WAS_TO_ENCODE_AGAIN} THEN NULL ELSE held_at END,
        retry_count = CASE WHEN changed THEN 0 ELSE retry_count END,
        next_attempt_at = CASE WHEN changed THEN clock_timestamp() ELSE next_attempt_at END
    FROM {_MOVED} JOIN cdn_image_assets a USING (id)
    WHERE j.asset_id = a.id AND j.status = '{JobStatus.QUEUED}'
""")

_HURRY_JOBS_IN_HAND = sa.text(f"""
    UPDATE cdn_image_jobs AS j SET priority = o.priority, updated_at = clock_timestamp()
    FROM {_MOVED}
    WHERE j.asset_id = o.id AND j.status = '{JobStatus.PROCESSING}' AND changed AND j.priority > o.priority
""")

# A better rank of the same picture keeps its failure: it is gone if the fresh URL gives 404 as well.
_OTHER_FAILURE = "(a.identity <> o.identity OR a.failure_kind IS NULL)"

# One writing of the row for all of it: a quiet night is as dear as the rows that it writes. Tells of those whose jobs
# have something to follow, or to be opened.
_MOVE_IMAGES = sa.text(f"""
    WITH moved AS (
        UPDATE cdn_image_assets AS a
        SET source_url = o.source_url, fallback_urls = o.fallback_urls, identity = o.identity, rank = o.rank,
            url_expires_at = o.url_expires_at, observed_at = greatest(a.observed_at, o.observed_at),
            seen_alive = {_LIVES_NOW} OR (a.seen_alive AND NOT changed),
            taken_at = coalesce(o.taken_at, a.taken_at), needs_update = a.needs_update OR changed,
            processing_status = CASE
                WHEN changed AND processing_status IN ('{ImageStatus.COMPLETED}', '{ImageStatus.FAILED}')
                THEN '{ImageStatus.PENDING}' ELSE processing_status END,
            processing_attempts = CASE WHEN changed THEN 0 ELSE processing_attempts END,
            failure_kind = CASE WHEN changed AND {_OTHER_FAILURE} THEN {_DEAD_ON_ARRIVAL} ELSE failure_kind END,
            processing_error = CASE WHEN changed THEN NULL ELSE processing_error END,
            last_checked = CASE WHEN :of_rows THEN clock_timestamp() ELSE last_checked END,
            removed_at = CASE WHEN :of_rows THEN NULL ELSE removed_at END,
            updated_at = clock_timestamp()
        FROM {_ROWS}
        WHERE a.source_type = o.source_type AND a.source_id = o.source_id AND a.media_id = o.media_id
        RETURNING a.id, a.processing_status, changed, alive, o.priority
    )
    SELECT CAST(id AS text) AS id, changed, alive, priority FROM moved
    WHERE processing_status = '{ImageStatus.PENDING}'
       OR EXISTS (SELECT FROM cdn_image_jobs j WHERE j.asset_id = moved.id AND {IS_OPEN})
""")

# An image that is pending and has no open job waits for a fresh URL. That is asked here and not taken from the
# sighting, because its attempt may have ended since.
_OPEN_JOBS = sa.text(f"""
    INSERT INTO cdn_image_jobs ({JOB_COLUMNS})
    SELECT a.id, a.collection, a.shard,
           CASE WHEN a.original_sha256 IS NULL THEN '{JobType.INGEST}' ELSE '{JobType.UPDATE}' END,
           priority, a.source_url, a.url_expires_at, :sizes, :format
    FROM {_MOVED} JOIN cdn_image_assets a USING (id)
    WHERE alive AND a.processing_status = '{ImageStatus.PENDING}'
    ON CONFLICT (asset_id) WHERE {IS_OPEN} DO NOTHING
""")
