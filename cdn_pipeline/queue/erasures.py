"""Erasures in the catalog: rows go, the numbers of jobs stay, and every object that is left to delete is on a list.

An erasure begins with its tombstones (`tombstones`). Then `take_down` removes the rows of the images, so that nothing
shows them any more, and puts the objects that they referred to on the erasure's list. A run may have such an image in
hand at that moment. Its job is cancelled, so its outcome is not written; `note_late_objects` puts what it has stored on
the list all the same, and opens the erasure again if it was done.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.leases import BUSY_IN_HAND, dead_runs
from cdn_pipeline.queue.states import JobStatus
from cdn_pipeline.queue.tombstones import pictures_of


class ErasureState(StrEnum):
    """`cdn_erasures.state`."""

    OPEN = "open"  # something is left to do
    PURGE_PENDING = "purge_pending"  # gone from the stores; caches may still have it
    DONE = "done"
    LIFTED = "lifted"  # what was erased may come in again


@dataclass(frozen=True, slots=True)
class Erasure:
    """The audit of one erasure. Counts are of rows and objects; `kept` are objects that other images refer to."""

    id: uuid.UUID
    collection: str
    owner_id: str
    scope: str  # owner, or image
    requested_by: str
    reason: str
    state: ErasureState
    images: int
    renditions: int
    originals: int
    kept: int
    cdn_verified: bool | None  # None: the CDN could not be asked
    problem: str | None
    created_at: datetime
    finished_at: datetime | None


_COLUMNS = ", ".join(Erasure.__slots__)


def open_erasure(
    connection: sa.Connection,
    collection: Collection,
    erasure_id: uuid.UUID,
    owner_id: str,
    *,
    scope: str,
    requested_by: str,
    reason: str,
) -> None:
    """Writes the audit row of a new erasure, or opens an earlier one again; who asked first stays."""
    values = {
        "id": erasure_id,
        "collection": collection.name,
        "owner_id": owner_id,
        "scope": scope,
        "requested_by": requested_by,
        "reason": reason,
    }
    connection.execute(_OPEN, values)


_OPEN = sa.text(f"""
    INSERT INTO cdn_erasures (id, collection, owner_id, scope, requested_by, reason)
    VALUES (:id, :collection, :owner_id, :scope, :requested_by, :reason)
    ON CONFLICT (id) DO UPDATE SET state = '{ErasureState.OPEN}', problem = NULL, updated_at = clock_timestamp()
""")


def note_lost_erasures(connection: sa.Connection) -> None:
    """Writes the audit rows of tombstones that were brought back without one; who asked is lost."""
    connection.execute(_NOTE_LOST)


_NOTE_LOST = sa.text(f"""
    INSERT INTO cdn_erasures (id, collection, owner_id, scope, requested_by, reason, state)
    SELECT erasure_id, collection, owner_id, CASE WHEN bool_or(source_type IS NULL) THEN 'owner' ELSE 'image' END,
           'rebuild-catalog', 'its tombstone was found in the store', '{ErasureState.DONE}'
    FROM cdn_tombstones GROUP BY erasure_id, collection, owner_id
    ON CONFLICT (id) DO NOTHING
""")


def read_erasure(connection: sa.Connection, erasure_id: uuid.UUID) -> Erasure:
    """The erasure as it stands."""
    query = sa.text(f"SELECT {_COLUMNS} FROM cdn_erasures WHERE id = :id")
    return _erasure(connection.execute(query, {"id": erasure_id}).mappings().one())


def list_erasures(connection: sa.Connection, collection: Collection, *, unfinished: bool = False) -> list[Erasure]:
    """All erasures, the latest first; only those with something left to do if `unfinished`."""
    values = {"collection": collection.name, "unfinished": unfinished}
    return [_erasure(row) for row in connection.execute(_LIST, values).mappings()]


_LIST = sa.text(f"""
    SELECT {_COLUMNS} FROM cdn_erasures
    WHERE collection = :collection
      AND (NOT :unfinished OR state IN ('{ErasureState.OPEN}', '{ErasureState.PURGE_PENDING}'))
    ORDER BY created_at DESC, id
""")


def left_alone(
    connection: sa.Connection, collection: Collection, *, states: Sequence[ErasureState], lately: timedelta, limit: int
) -> list[uuid.UUID]:
    """Erasures in one of these states of which nothing was heard lately, the longest left alone first."""
    values = {"collection": collection.name, "states": list(states), "lately": lately, "limit": limit}
    return list(connection.scalars(_LEFT_ALONE, values))


_LEFT_ALONE = sa.text("""
    SELECT id FROM cdn_erasures
    WHERE collection = :collection AND state = ANY(:states)
      AND updated_at < clock_timestamp() - CAST(:lately AS interval)
    ORDER BY updated_at, id LIMIT :limit
""")


def _erasure(row: sa.RowMapping) -> Erasure:
    return Erasure(**{**row, "state": ErasureState(row["state"])})


# -- rows --


def take_down(connection: sa.Connection, erasure_id: uuid.UUID) -> int:
    """Removes the rows of the images under the erasure's tombstones; returns how many images there were.

    Their jobs stay as they ended, without a URL or a reference; open ones are cancelled. What users and the nights
    asked for an erased owner is forgotten, and what was answered.
    """
    connection.execute(_LOCK_JOBS, {"erasure_id": erasure_id})
    asset_ids = list(connection.scalars(_LOCK_IMAGES, {"erasure_id": erasure_id}))
    if asset_ids:
        for statement in (_LIST_OBJECTS, _STRIP_JOBS, _DELETE_IMAGES, _COUNT_IMAGES):
            connection.execute(statement, {"erasure_id": erasure_id, "asset_ids": asset_ids})
    for statement in _DELETE_QUESTIONS:
        connection.execute(statement, {"erasure_id": erasure_id})
    return len(asset_ids)


_ITS_IMAGES = f"""cdn_image_assets a JOIN (
    SELECT DISTINCT i.id FROM cdn_image_assets i
    JOIN cdn_tombstones t ON t.erasure_id = :erasure_id AND (t.collection, t.owner_id) = (i.collection, i.owner_id)
         AND (t.source_type IS NULL
              OR (t.source_type, t.source_id, t.media_id) = (i.source_type, i.source_id, i.media_id)
              OR t.identities && {pictures_of("i")})) AS its ON its.id = a.id"""

# Jobs first, in the order of their images, as everywhere. Whoever opens another job has locked its image before.
_LOCK_JOBS = sa.text(f"""
    SELECT FROM {_ITS_IMAGES} JOIN cdn_image_jobs j ON j.asset_id = a.id AND {IS_OPEN} ORDER BY a.id FOR UPDATE OF j
""")
_LOCK_IMAGES = sa.text(f"SELECT a.id FROM {_ITS_IMAGES} ORDER BY a.id FOR UPDATE OF a")

_LIST_OBJECTS = sa.text("""
    INSERT INTO cdn_erasure_objects (erasure_id, reference)
    SELECT :erasure_id, path FROM cdn_image_renditions WHERE asset_id = ANY(:asset_ids)
    UNION SELECT :erasure_id, original_sha256 FROM cdn_image_renditions WHERE asset_id = ANY(:asset_ids)
    UNION SELECT :erasure_id, original_sha256 FROM cdn_image_assets
          WHERE id = ANY(:asset_ids) AND original_sha256 IS NOT NULL
    ON CONFLICT (erasure_id, reference) DO UPDATE SET deleted_at = NULL
""")

# Statistics of any hour stay what they were: an open job ends now, one in hand was busy until now. A lease that stays
# says that a run still has the image in hand.
_STRIP_JOBS = sa.text(f"""
    UPDATE cdn_image_jobs
    SET asset_id = NULL, source_url = '', error_message = NULL,
        error_details = jsonb_build_object('erasure', CAST(:erasure_id AS text)),
        status = CASE WHEN {IS_OPEN} THEN '{JobStatus.CANCELLED}' ELSE status END,
        completed_at = CASE WHEN {IS_OPEN} THEN clock_timestamp() ELSE completed_at END,
        busy = CASE WHEN status = '{JobStatus.PROCESSING}' THEN busy + {BUSY_IN_HAND} ELSE busy END,
        updated_at = clock_timestamp()
    WHERE asset_id = ANY(:asset_ids)
""")

_DELETE_IMAGES = sa.text("DELETE FROM cdn_image_assets WHERE id = ANY(:asset_ids)")

# After jobs and images, as where an answer is taken in.
_DELETE_QUESTIONS = [
    sa.text(f"""
        DELETE FROM {table} q USING cdn_tombstones t
        WHERE t.erasure_id = :erasure_id AND t.source_type IS NULL
          AND (t.collection, t.owner_id) = (q.collection, q.owner_id)
    """)
    for table in ("cdn_refreshes", "cdn_provider_owners")
]

_COUNT_IMAGES = sa.text("""
    UPDATE cdn_erasures SET images = images + cardinality(CAST(:asset_ids AS uuid[])) WHERE id = :erasure_id
""")


def delete_probes(connection: sa.Connection, prefixes: Sequence[str]) -> None:
    """Deletes the probes of delivery whose paths begin with one of these; renditions' rows must be gone before."""
    connection.execute(_DELETE_PROBES, {"prefixes": list(prefixes)})


_DELETE_PROBES = sa.text("""
    DELETE FROM cdn_delivery_probes p USING unnest(CAST(:prefixes AS text[])) AS erased(prefix)
    WHERE starts_with(p.path, erased.prefix)
""")

_ITS_JOBS = "asset_id IS NULL AND error_details ->> 'erasure' = CAST(:erasure_id AS text)"


def count_in_hand(connection: sa.Connection, erasure_id: uuid.UUID) -> int:
    """Of the erased images, how many a living run claimed before and has not come back with."""
    values = {"erasure_id": erasure_id, "dead": dead_runs(connection)}
    return connection.scalar(_COUNT_IN_HAND, values) or 0


_COUNT_IN_HAND = sa.text(f"""
    SELECT count(*) FROM cdn_image_jobs
    WHERE {_ITS_JOBS} AND lease_until IS NOT NULL
      AND run_id IN (SELECT run_id FROM cdn_runs WHERE ended_at IS NULL) AND run_id <> ALL(:dead)
""")


def note_late_objects(connection: sa.Connection, stored: Mapping[uuid.UUID, Sequence[str]]) -> None:
    """Notes that runs have come back with these jobs, and what they have stored of images that are erased by now.

    Args:
        connection: the transaction in which the outcomes were refused.
        stored: by job, the paths of renditions and the SHA-256s of originals; jobs of living images are ignored.
    """
    if not stored:
        return
    rows = [{"job_id": str(job_id), "stored": list(references)} for job_id, references in stored.items()]
    connection.execute(_NOTE_LATE_OBJECTS, {"rows": json.dumps(rows)})


_NOTE_LATE_OBJECTS = sa.text(f"""
    WITH late AS (
        SELECT j.id, o.stored, e.id AS erasure_id
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS o(job_id uuid, stored text[])
        JOIN cdn_image_jobs j ON j.id = o.job_id AND j.asset_id IS NULL
        JOIN cdn_erasures e ON e.id = CAST(j.error_details ->> 'erasure' AS uuid)
        WHERE e.state <> '{ErasureState.LIFTED}'
    ), back AS (
        UPDATE cdn_image_jobs AS j SET lease_until = NULL, updated_at = clock_timestamp() FROM late WHERE j.id = late.id
    ), listed AS (
        INSERT INTO cdn_erasure_objects (erasure_id, reference)
        SELECT DISTINCT erasure_id, unnest(stored) FROM late
        ON CONFLICT (erasure_id, reference) DO UPDATE SET deleted_at = NULL
        RETURNING erasure_id
    )
    UPDATE cdn_erasures SET state = '{ErasureState.OPEN}', updated_at = clock_timestamp()
    WHERE id IN (SELECT erasure_id FROM listed)
""")


# -- objects --


def list_objects(connection: sa.Connection, erasure_id: uuid.UUID, references: Sequence[str]) -> None:
    """Puts objects on the list that were found in the store."""
    connection.execute(_LIST_FOUND, {"erasure_id": erasure_id, "references": list(references)})


_LIST_FOUND = sa.text("""
    INSERT INTO cdn_erasure_objects (erasure_id, reference)
    SELECT DISTINCT CAST(:erasure_id AS uuid), reference FROM unnest(CAST(:references AS text[])) AS found(reference)
    ON CONFLICT (erasure_id, reference) DO UPDATE SET deleted_at = NULL
""")


def objects_to_delete(connection: sa.Connection, erasure_id: uuid.UUID) -> list[str]:
    """Paths and SHA-256s on the list that are not deleted."""
    return list(connection.scalars(_TO_DELETE, {"erasure_id": erasure_id}))


_TO_DELETE = sa.text("""
    SELECT reference FROM cdn_erasure_objects WHERE erasure_id = :erasure_id AND deleted_at IS NULL ORDER BY reference
""")


def deleted_objects(connection: sa.Connection, erasure_id: uuid.UUID) -> list[str]:
    """Paths and SHA-256s on the list that are deleted."""
    return list(connection.scalars(_DELETED, {"erasure_id": erasure_id}))


_DELETED = sa.text("""
    SELECT reference FROM cdn_erasure_objects
    WHERE erasure_id = :erasure_id AND deleted_at IS NOT NULL ORDER BY reference
""")


def note_deleted(
    connection: sa.Connection, erasure_id: uuid.UUID, *, deleted: Sequence[str], kept: Sequence[str]
) -> None:
    """Notes which objects are gone from the store, and which stay because other images refer to them."""
    values = {"erasure_id": erasure_id, "deleted": list(deleted), "kept": list(kept)}
    connection.execute(_NOTE_DELETED, values)


_NOTE_DELETED = sa.text("""
    UPDATE cdn_erasure_objects
    SET kept = reference = ANY(:kept), deleted_at = CASE WHEN reference = ANY(:deleted) THEN clock_timestamp() END
    WHERE erasure_id = :erasure_id AND (reference = ANY(:kept) OR reference = ANY(:deleted))
""")


def close_erasure(
    connection: sa.Connection,
    erasure_id: uuid.UUID,
    state: ErasureState,
    *,
    cdn_verified: bool | None = None,
    problem: str | None = None,
) -> ErasureState:
    """Writes how far an erasure has come, and returns it. One that is done keeps counts, and no list.

    If a late object was listed meanwhile, it stays open.
    """
    values: dict[str, object] = {
        "erasure_id": erasure_id,
        "state": state,
        "cdn_verified": cdn_verified,
        "problem": problem,
    }
    connection.execute(_LOCK_ERASURE, values)
    late = state is not ErasureState.OPEN and connection.scalar(_HAS_LEFT, values)
    if late:
        state = ErasureState.OPEN
        values |= {"state": state, "problem": "a run came back with more of it"}
    connection.execute(_CLOSE, values)
    if state in (ErasureState.DONE, ErasureState.LIFTED):
        for statement in (_COUNT_OBJECTS, _DELETE_LIST, _END_LEASES):
            connection.execute(statement, values)
    return state


def note_lifted(connection: sa.Connection, erasure_ids: Sequence[uuid.UUID]) -> None:
    """Notes that these were lifted before, wherever they stand: what is on their lists is not to be deleted."""
    for erasure_id in erasure_ids:
        connection.execute(_DELETE_LIST, {"erasure_id": erasure_id})
        close_erasure(connection, erasure_id, ErasureState.LIFTED)


_LOCK_ERASURE = sa.text("SELECT FROM cdn_erasures WHERE id = :erasure_id FOR UPDATE")

_HAS_LEFT = sa.text("""
    SELECT EXISTS (SELECT FROM cdn_erasure_objects
                   WHERE erasure_id = :erasure_id AND deleted_at IS NULL AND NOT kept)
""")

_CLOSE = sa.text(f"""
    UPDATE cdn_erasures
    SET state = CAST(:state AS varchar), cdn_verified = coalesce(:cdn_verified, cdn_verified), problem = :problem,
        finished_at = CASE WHEN :state = '{ErasureState.DONE}' THEN clock_timestamp() ELSE finished_at END,
        updated_at = clock_timestamp()
    WHERE id = :erasure_id
""")

_COUNT_OBJECTS = sa.text("""
    UPDATE cdn_erasures AS e
    SET renditions = e.renditions + listed.renditions, originals = e.originals + listed.originals,
        kept = greatest(e.kept, listed.kept)
    FROM (
        SELECT count(*) FILTER (WHERE NOT kept AND starts_with(reference, '/')) AS renditions,
               count(*) FILTER (WHERE NOT kept AND NOT starts_with(reference, '/')) AS originals,
               count(*) FILTER (WHERE kept) AS kept
        FROM cdn_erasure_objects WHERE erasure_id = :erasure_id
    ) AS listed
    WHERE id = :erasure_id
""")

_DELETE_LIST = sa.text("DELETE FROM cdn_erasure_objects WHERE erasure_id = :erasure_id")

_END_LEASES = sa.text(f"UPDATE cdn_image_jobs SET lease_until = NULL WHERE {_ITS_JOBS} AND lease_until IS NOT NULL")
