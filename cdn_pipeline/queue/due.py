"""The one due query: an open job whose next attempt time has come and that nobody holds; and how runs claim it."""

import json
import uuid
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.queue.leases import LEASE, Run
from cdn_pipeline.queue.states import STATUS_IN_HAND, JobStatus, JobType, Stage

IS_DUE = f"status = '{JobStatus.QUEUED}' AND held_at IS NULL AND next_attempt_at <= clock_timestamp()"

# A job of a recipe that this code does not have is left to code that has it.
IS_SELECTED = """collection = :collection AND stage = ANY(:stages)
    AND (rollout IS NULL OR rollout = ANY(:recipe_names))
    AND priority < coalesce(CAST(:before_priority AS int), 11)
    AND (CAST(:owners AS text[]) IS NULL
         OR asset_id IN (SELECT id FROM cdn_image_assets WHERE owner_id = ANY(:owners)))"""


# A job is behind a breaker while that of the host that its download asks first is open. It stays due, untouched. (In
# SQL, `shut` is to be joined to the jobs; the host may be asked again at `shut.retry_at`.)
JOIN_SHUT_HOSTS = f"""LEFT JOIN (
    SELECT host AS shut_host, opened_at AS shut_at, retry_at FROM cdn_hosts WHERE retry_at > clock_timestamp()
) AS shut ON stage = '{Stage.DOWNLOAD}' AND host = shut_host"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs a run works on: its collection, the stages it may do, and optionally only some of the jobs.

    `before_priority` leaves out the jobs of this priority and all that can wait longer.
    """

    collection: Collection
    stages: frozenset[Stage]
    owner_ids: tuple[str, ...] | None = None
    before_priority: int | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """What the queries of this module bind."""
        return {
            "collection": self.collection.name,
            "stages": sorted(self.stages),
            "recipe": self.collection.recipe.name,
            "recipe_names": [recipe.name for recipe in self.collection.recipes],
            "recipes": json.dumps([_recipe_row(recipe) for recipe in self.collection.recipes]),
            "owners": list(self.owner_ids) if self.owner_ids is not None else None,
            "before_priority": self.before_priority,
        }


def _recipe_row(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.name, "version": recipe.version, "format": recipe.format, "sizes": recipe.longest_sides}


def count_due(connection: sa.Connection, selection: Selection, shards: Sequence[str]) -> int:
    """How many jobs are due in the shards."""
    return connection.scalar(_COUNT_DUE, {**selection.parameters, "shards": list(shards)}) or 0


_COUNT_DUE = sa.text(f"SELECT count(*) FROM cdn_image_jobs WHERE shard = ANY(:shards) AND {IS_DUE} AND {IS_SELECTED}")


@dataclass(frozen=True, slots=True)
class StoredRendition:
    """A rendition that is in the store and waits to be made current."""

    path: str
    file_size: int


@dataclass(frozen=True, slots=True)
class DueJob:
    """A claimed job with what is known of its image. Ordered by (priority, deadline), earliest first."""

    job_id: uuid.UUID
    asset_id: uuid.UUID
    shard: str
    job_type: JobType
    stage: Stage
    recipe: Recipe  # which the job makes: the collection's own, unless it rolls out another
    priority: int
    deadline: datetime | None
    force: bool
    retry_count: int
    owner_id: str
    source_type: str
    source_id: str
    media_id: str
    urls: tuple[str, ...]  # best rank first
    ranks: tuple[int, ...]  # of `urls`
    host: str  # of the first of `urls`, by which breakers are known
    identity: str
    url_expires_at: datetime | None
    source_etag: str | None  # with `source_last_modified`: of the answer that the stored original came in
    source_last_modified: str | None
    original_sha256: str | None
    original_identity: str | None
    original_rank: int | None
    original_file_size: int | None  # bytes
    last_failure: FailureKind | None
    current_paths: frozenset[str]
    claimed_at: datetime  # by the catalog's clock
    up_to_date: bool  # all sizes of the recipe are current, by its present version, from the stored original
    stored: tuple[StoredRendition, ...] = field(default=())
    observed_at: datetime | None = None  # when the source was last seen to show this identity
    taken_at: datetime | None = None

    def url_lives(self, now: datetime) -> timedelta | None:
        """How long the best source URL still answers, negative if it is dead; None if it has no expiry."""
        return self.url_expires_at - now if self.url_expires_at else None

    @property
    def order(self) -> tuple[int, float]:
        """The sort key of the stream: deadlines come first within a priority; no deadline comes last."""
        return self.priority, self.deadline.timestamp() if self.deadline else float("inf")


# What the job makes is written here: one that went back to its source is not what it was opened as.
#
# One statement for all shards: the lateral join makes it one short index scan per shard (0.056 ms per image, against
# 1.09 ms for one scan over 64 shards, which has to sort all that is pending). And with an array in place of a join the
# planner never thinks of reading the whole table for a large claim.
_CLAIM = sa.text(f"""
    WITH known AS (
        SELECT * FROM jsonb_to_recordset(CAST(:recipes AS jsonb))
            AS known(recipe text, version int, format text, sizes int[])
    ), picked AS (
        SELECT due.id
        FROM unnest(CAST(:shards AS text[])) AS wanted(shard)
        CROSS JOIN LATERAL (
            SELECT id, priority, deadline FROM cdn_image_jobs
            WHERE shard = wanted.shard AND {IS_DUE} AND {IS_SELECTED}
              AND (stage <> '{Stage.DOWNLOAD}' OR host <> ALL(CAST(:leaving_out AS text[])) AND host NOT IN (
                  SELECT host FROM cdn_hosts WHERE retry_at > clock_timestamp()))
            ORDER BY priority, deadline LIMIT :batch
            FOR UPDATE SKIP LOCKED
        ) AS due
        ORDER BY due.priority, due.deadline LIMIT :total
    ), claimed AS (
        UPDATE cdn_image_jobs AS j
        SET status = '{JobStatus.PROCESSING}', run_id = :run_id, worker_id = :worker_id,
            started_at = clock_timestamp(), first_started_at = coalesce(first_started_at, clock_timestamp()),
            lease_until = clock_timestamp() + :lease, updated_at = clock_timestamp(),
            output_format = known.format, target_sizes = known.sizes
        FROM known
        WHERE j.id = ANY(ARRAY(SELECT id FROM picked)) AND known.recipe = coalesce(j.rollout, :recipe)
        RETURNING j.*, known.recipe, known.version
    ), marked AS (
        UPDATE cdn_image_assets AS a
        SET processing_status = CASE claimed.stage {
    " ".join(f"WHEN '{stage}' THEN '{status}'" for stage, status in STATUS_IN_HAND.items())
} END,
            processing_started_at = claimed.started_at, processing_attempts = a.processing_attempts + 1,
            updated_at = clock_timestamp()
        FROM claimed WHERE a.id = claimed.asset_id
        RETURNING a.*
    )
    SELECT claimed.id AS job_id, claimed.asset_id, claimed.shard, claimed.job_type, claimed.stage, claimed.recipe,
           claimed.host, claimed.priority, claimed.deadline, claimed.force, claimed.retry_count, marked.owner_id,
           marked.source_type, marked.source_id, marked.media_id, marked.source_url, marked.rank, marked.fallback_urls,
           marked.identity, marked.url_expires_at, marked.source_etag, marked.source_last_modified,
           marked.original_sha256, marked.original_identity, marked.original_rank, marked.original_file_size,
           marked.failure_kind, marked.observed_at, marked.taken_at, claimed.started_at AS claimed_at,
           renditions.current_paths, renditions.fresh, renditions.stored
    FROM claimed JOIN marked ON marked.id = claimed.asset_id
    CROSS JOIN LATERAL (
        SELECT array_agg(path) FILTER (WHERE state = 'current') AS current_paths,
               count(*) FILTER (WHERE state = 'current'
                                AND (r.recipe, r.recipe_version) = (claimed.recipe, claimed.version)
                                AND r.original_sha256 = marked.original_sha256) AS fresh,
               jsonb_agg(jsonb_build_object('path', path, 'file_size', file_size))
                   FILTER (WHERE state = 'stored') AS stored
        FROM cdn_image_renditions AS r WHERE r.asset_id = claimed.asset_id
    ) AS renditions
""")


def claim(
    connection: sa.Connection,
    run: Run,
    selection: Selection,
    shards: Sequence[str],
    *,
    batch: int,
    total: int,
    leaving_out: Set[str] = frozenset(),
) -> list[DueJob]:
    """Leases the first `batch` due jobs of each shard, the first `total` of them, to the run.

    First is who has the lower priority number, then the earlier deadline; the list is in no particular order. Jobs
    behind a breaker are left alone, and so are downloads from the hosts `leaving_out`.
    """
    rows = connection.execute(
        _CLAIM,
        {
            **selection.parameters,
            "shards": list(shards),
            "batch": batch,
            "total": total,
            "leaving_out": list(leaving_out),
            "run_id": run.run_id,
            "worker_id": run.worker_id,
            "lease": LEASE,
        },
    ).mappings()
    return [_due_job(row, selection.collection.recipe_named(row["recipe"])) for row in rows]


def _due_job(row: sa.RowMapping, recipe: Recipe) -> DueJob:
    fallbacks = row["fallback_urls"]
    return DueJob(
        job_id=row["job_id"],
        asset_id=row["asset_id"],
        shard=row["shard"],
        job_type=JobType(row["job_type"]),
        stage=Stage(row["stage"]),
        recipe=recipe,
        priority=row["priority"],
        deadline=row["deadline"],
        force=row["force"],
        retry_count=row["retry_count"],
        owner_id=row["owner_id"],
        source_type=row["source_type"],
        source_id=row["source_id"],
        media_id=row["media_id"],
        urls=(row["source_url"], *(fallback["url"] for fallback in fallbacks)),
        ranks=(row["rank"], *(fallback["rank"] for fallback in fallbacks)),
        host=row["host"],
        identity=row["identity"],
        url_expires_at=row["url_expires_at"],
        source_etag=row["source_etag"],
        source_last_modified=row["source_last_modified"],
        original_sha256=row["original_sha256"],
        original_identity=row["original_identity"],
        original_rank=row["original_rank"],
        original_file_size=row["original_file_size"],
        last_failure=FailureKind.of(row["failure_kind"]),
        current_paths=frozenset(row["current_paths"] or ()),
        claimed_at=row["claimed_at"],
        up_to_date=row["fresh"] == len(recipe.sizes),
        stored=tuple(StoredRendition(**rendition) for rendition in row["stored"] or ()),
        observed_at=row["observed_at"],
        taken_at=row["taken_at"],
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is left in a shard that had nothing to claim."""

    due: int  # and not behind a breaker
    held_by_others: int
    next_attempt_in: timedelta | None  # of a retry that a run waits for, or of a job whose breaker half-opens soon


def outlook(
    connection: sa.Connection, run: Run, selection: Selection, shards: Sequence[str], *, horizon: timedelta
) -> dict[str, Outlook]:
    """For each shard: jobs due now, jobs that other runs hold, and the next attempt within the horizon."""
    rows = connection.execute(
        _OUTLOOK,
        {**selection.parameters, "shards": list(shards), "run_id": run.run_id, "horizon": horizon},
    )
    found = {row.shard: Outlook(int(row.due), int(row.held_by_others), row.next_attempt_in) for row in rows}
    nothing = Outlook(due=0, held_by_others=0, next_attempt_in=None)
    return {shard: found.get(shard, nothing) for shard in shards}


# Queued jobs and those in hand are counted apart, so that each count has its partial index: finished jobs stay for
# 90 days, and both in one condition would read them all.
_OUTLOOK = sa.text(f"""
    SELECT shard, sum(due) AS due, sum(held) AS held_by_others,
           min(next_attempt_at) - clock_timestamp() AS next_attempt_in
    FROM (
        SELECT shard, count(*) FILTER (WHERE {IS_DUE} AND shut_host IS NULL) AS due, 0 AS held,
               min(attempt_at) FILTER (WHERE attempt_at > clock_timestamp()) AS next_attempt_at
        FROM cdn_image_jobs {JOIN_SHUT_HOSTS}
        CROSS JOIN LATERAL (SELECT greatest(next_attempt_at, shut.retry_at) AS attempt_at) AS attempt
        WHERE shard = ANY(:shards) AND status = '{JobStatus.QUEUED}' AND held_at IS NULL AND {IS_SELECTED}
          AND attempt_at <= clock_timestamp() + :horizon
        GROUP BY shard
        UNION ALL
        SELECT shard, 0, count(*), NULL
        FROM cdn_image_jobs
        WHERE shard = ANY(:shards) AND status = '{JobStatus.PROCESSING}' AND run_id <> :run_id AND {IS_SELECTED}
        GROUP BY shard
    ) AS open_jobs
    GROUP BY shard
""")
