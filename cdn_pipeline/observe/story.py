"""The whole story of an image, as the catalog tells it: facts alone, in the order in which an operator asks."""

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.snapshot import Snapshot
from cdn_pipeline.queue.due import IS_DUE, IS_SELECTED, JOIN_SHUT_HOSTS, Selection
from cdn_pipeline.queue.states import ImageStatus, JobStatus, JobType, Stage


@dataclass(frozen=True, slots=True)
class UrlStory:
    """A source URL of an image; `rank` as in `sources.instagram`."""

    url: str
    identity: str
    rank: int
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class OriginalStory:
    """The stored original, and the picture it is of. Sides in pixels, known once it was decoded."""

    sha256: str
    identity: str
    rank: int
    format: str
    file_size: int
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class JobStory:
    """One job. Times of stages in milliseconds, of the last attempt that reached them."""

    job_id: uuid.UUID
    job_type: JobType
    priority: int
    stage: Stage  # the one that comes next, or came last
    force: bool
    rollout: str | None  # the recipe that is rolled out; None: the collection's own
    rollout_paused: bool
    source_url: str
    status: JobStatus
    due: bool  # by the due query's own condition, for a run of every stage
    opened_at: datetime
    first_started_at: datetime | None
    ended_at: datetime | None
    next_attempt_at: datetime
    held_at: datetime | None
    host: str
    host_shut_at: datetime | None  # its breaker is open, and what the job does next is to ask that host
    host_asked_at: datetime | None  # if so: when it may be asked again
    retry_count: int
    run_id: str | None
    worker_id: str | None
    lease_until: datetime | None
    run_lives: bool  # holds its lock, and the job's lease has not expired
    failure: FailureKind | None
    detail: str | None
    download_ms: int | None
    transcode_ms: int | None
    upload_ms: int | None
    bytes_in: int | None
    bytes_out: int | None
    archived: bool  # failed over a week ago

    @property
    def is_open(self) -> bool:
        """Whether the job is part of the queue."""
        return self.status in (JobStatus.QUEUED, JobStatus.PROCESSING)

    @property
    def attempts(self) -> int:
        """Attempts since the last success, new picture or operator's retry, the one under way included."""
        return self.retry_count + (self.status is not JobStatus.QUEUED)


@dataclass(frozen=True, slots=True)
class RenditionStory:
    """One rendition: `state` is stored (not visible yet), current, or superseded, `since` then. Sides in pixels."""

    size_name: str
    format: str
    width: int
    height: int
    file_size: int
    path: str
    url: str
    recipe: str
    recipe_version: int
    state: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ImageStory:
    """One image with everything that belongs to it, as of `now` by the catalog's clock."""

    now: datetime
    image_id: uuid.UUID
    shard: str
    owner_id: str
    source_type: str
    source_id: str
    media_id: str
    taken_at: datetime | None
    first_seen_at: datetime
    current: UrlStory
    fallbacks: tuple[UrlStory, ...]
    observed_at: datetime
    last_checked: datetime
    seen_alive: bool  # a URL of the present identity was seen before its expiry
    removed_at: datetime | None  # the source row was found missing
    original: OriginalStory | None
    placeholder: str | None  # BlurHash of what is visible
    status: ImageStatus
    failure: FailureKind | None
    detail: str | None
    completed_at: datetime | None  # the last time
    jobs: tuple[JobStory, ...]  # newest first
    renditions: tuple[RenditionStory, ...]  # visible ones first

    @property
    def open_job(self) -> JobStory | None:
        """The one job that the queue has of this image."""
        return next((job for job in self.jobs if job.is_open), None)

    @property
    def earlier_urls(self) -> tuple[str, ...]:
        """URLs that its jobs were opened with and that it has no more, the last one first."""
        present = {self.current.url, *(fallback.url for fallback in self.fallbacks)}
        return tuple(url for url in dict.fromkeys(job.source_url for job in self.jobs) if url not in present)

    @property
    def visible(self) -> tuple[RenditionStory, ...]:
        """The renditions that the public sees now."""
        return tuple(rendition for rendition in self.renditions if rendition.state == "current")


def tell_stories(snapshot: Snapshot, collection: Collection, image_ids: Sequence[uuid.UUID]) -> list[ImageStory]:
    """The stories of these images, in their order; ids that are no image's are left out."""
    connection, ids = snapshot.connection, {"ids": list(image_ids)}
    jobs, renditions = defaultdict(list), defaultdict(list)
    everything = Selection(collection, frozenset(Stage))
    for row in connection.execute(_JOBS, {**everything.parameters, **ids}).mappings():
        jobs[row["asset_id"]].append(_job(row, snapshot.dead))
    for row in connection.execute(_RENDITIONS, ids).mappings():
        renditions[row["asset_id"]].append(_rendition(row))
    images = {row["id"]: row for row in connection.execute(_IMAGES, ids).mappings()}
    return [_story(images[key], jobs[key], renditions[key]) for key in image_ids if key in images]


_IMAGES = sa.text("SELECT *, clock_timestamp() AS now FROM cdn_image_assets WHERE id = ANY(:ids)")

# Jobs alone, so that the due condition reads here as it does where runs claim.
_JOBS = sa.text(f"""
    SELECT *, {IS_DUE} AND {IS_SELECTED} AND shut_host IS NULL AS due,
           lease_until > clock_timestamp() AND run_id IN (SELECT run_id FROM cdn_runs WHERE ended_at IS NULL) AS leased,
           (collection, rollout) IN (
               SELECT collection, recipe FROM cdn_rollouts WHERE paused_at IS NOT NULL) AS rollout_paused
    FROM cdn_image_jobs {JOIN_SHUT_HOSTS} WHERE asset_id = ANY(:ids) ORDER BY created_at DESC, id
""")

_RENDITIONS = sa.text("""
    SELECT r.*, d.base_url || r.path AS url,
           CASE r.state WHEN 'stored' THEN r.created_at WHEN 'current' THEN r.published_at
                        ELSE r.superseded_at END AS since
    FROM cdn_image_renditions r CROSS JOIN cdn_delivery d WHERE r.asset_id = ANY(:ids)
    ORDER BY r.state, r.format DESC, length(r.size_name), r.size_name, since DESC
""")


def _story(row: sa.RowMapping, jobs: Sequence[JobStory], renditions: Sequence[RenditionStory]) -> ImageStory:
    return ImageStory(
        now=row["now"],
        image_id=row["id"],
        shard=row["shard"],
        owner_id=row["owner_id"],
        source_type=row["source_type"],
        source_id=row["source_id"],
        media_id=row["media_id"],
        taken_at=row["taken_at"],
        first_seen_at=row["created_at"],
        current=UrlStory(row["source_url"], row["identity"], row["rank"], row["url_expires_at"]),
        fallbacks=tuple(_fallback(fallback) for fallback in row["fallback_urls"]),
        observed_at=row["observed_at"],
        last_checked=row["last_checked"],
        seen_alive=row["seen_alive"],
        removed_at=row["removed_at"],
        original=_original(row) if row["original_sha256"] else None,
        placeholder=row["placeholder"],
        status=ImageStatus(row["processing_status"]),
        failure=FailureKind.of(row["failure_kind"]),
        detail=row["processing_error"],
        completed_at=row["processing_completed_at"],
        jobs=tuple(jobs),
        renditions=tuple(renditions),
    )


def _fallback(url: Mapping[str, Any]) -> UrlStory:
    expires_at = url["expires_at"] and datetime.fromisoformat(url["expires_at"])
    return UrlStory(url["url"], url["identity"], url["rank"], expires_at)


def _original(row: sa.RowMapping) -> OriginalStory:
    return OriginalStory(
        sha256=row["original_sha256"],
        identity=row["original_identity"],
        rank=row["original_rank"],
        format=row["original_format"],
        file_size=row["original_file_size"],
        width=row["original_width"],
        height=row["original_height"],
    )


def _job(row: sa.RowMapping, dead: frozenset[str]) -> JobStory:
    return JobStory(
        job_id=row["id"],
        job_type=JobType(row["job_type"]),
        priority=row["priority"],
        stage=Stage(row["stage"]),
        force=row["force"],
        rollout=row["rollout"],
        rollout_paused=bool(row["rollout_paused"]),
        source_url=row["source_url"],
        status=JobStatus(row["status"]),
        due=row["due"],
        opened_at=row["created_at"],
        first_started_at=row["first_started_at"],
        ended_at=row["completed_at"],
        next_attempt_at=row["next_attempt_at"],
        held_at=row["held_at"],
        host=row["host"],
        host_shut_at=row["shut_at"],
        host_asked_at=row["retry_at"],
        retry_count=row["retry_count"],
        run_id=row["run_id"],
        worker_id=row["worker_id"],
        lease_until=row["lease_until"],
        run_lives=bool(row["leased"]) and row["run_id"] not in dead,
        failure=FailureKind.of(row["failure_kind"]),
        detail=row["error_message"],
        download_ms=row["download_ms"],
        transcode_ms=row["transcode_ms"],
        upload_ms=row["upload_ms"],
        bytes_in=row["bytes_in"],
        bytes_out=row["bytes_out"],
        archived=row["archived_at"] is not None,
    )


def _rendition(row: sa.RowMapping) -> RenditionStory:
    return RenditionStory(**{name: row[name] for name in RenditionStory.__slots__})
