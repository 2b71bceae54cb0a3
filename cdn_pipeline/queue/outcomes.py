"""Outcomes: how an attempt ended, and what it brought. `settlement` writes them."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.states import ImageStatus, JobStatus, Stage


class Verdict(StrEnum):
    """How an attempt ended."""

    PUBLISHED = "published"  # all sizes are verified in the store and become current
    UNCHANGED = "unchanged"  # the bytes are those we have: nothing to encode, nothing to publish
    ADVANCED = "advanced"  # as far as the run's selection goes; the next stage is left to another run
    RETRYING = "retrying"  # transient: tried again later
    WAITING = "waiting"  # for a fresh URL
    FAILED = "failed"  # permanent
    RELEASED = "released"  # not this image's fault: due again, as if it had not been claimed


# (job status, image status) of each verdict; only edges of `states` appear here (a test keeps it so).
EFFECTS: dict[Verdict, tuple[JobStatus, ImageStatus]] = {
    Verdict.PUBLISHED: (JobStatus.COMPLETED, ImageStatus.COMPLETED),
    Verdict.UNCHANGED: (JobStatus.COMPLETED, ImageStatus.COMPLETED),
    Verdict.ADVANCED: (JobStatus.QUEUED, ImageStatus.PENDING),
    Verdict.RETRYING: (JobStatus.QUEUED, ImageStatus.PENDING),
    Verdict.WAITING: (JobStatus.FAILED, ImageStatus.PENDING),
    Verdict.FAILED: (JobStatus.FAILED, ImageStatus.FAILED),
    Verdict.RELEASED: (JobStatus.QUEUED, ImageStatus.PENDING),
}


@dataclass(frozen=True, slots=True)
class StoredOriginal:
    """An original that is in the store, and where it came from. Sides in pixels, known once it was decoded."""

    sha256: str
    identity: str
    rank: int
    file_size: int
    format: str
    content_type: str | None
    etag: str | None
    last_modified: str | None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class NewRendition:
    """A rendition that is in the store."""

    size_name: str
    format: str
    width: int
    height: int
    file_size: int
    content_hash: str
    path: str
    original_sha256: str
    recipe: str
    recipe_version: int
    encoder: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one claimed job. Times in milliseconds; `None` means that the stage was not reached."""

    job_id: uuid.UUID
    asset_id: uuid.UUID
    shard: str
    verdict: Verdict
    stage: Stage  # what comes next, if anything does
    identity: str  # which the attempt was for
    source_url: str  # the best one when the job was claimed
    failure: FailureKind | None = None
    detail: str = ""
    untouched: bool = False  # released because of its host or the catalog: the run counts it as if it was never claimed
    retry_in_seconds: float = 0.0
    original: StoredOriginal | None = None
    renditions: tuple[NewRendition, ...] = ()
    placeholder: str | None = None  # of what is published; None: nobody knows
    download_ms: int | None = None
    transcode_ms: int | None = None
    upload_ms: int | None = None
    total_ms: int = 0
    bytes_in: int | None = None
    bytes_out: int | None = None
    claimed_at: datetime | None = None  # before anything was put into the stores; None: nobody knows

    @property
    def objects(self) -> tuple[str, ...]:
        """What the attempt put into the stores: the SHA-256 of its original, the paths of its renditions."""
        originals = (self.original.sha256,) if self.original else ()
        return (*originals, *(rendition.path for rendition in self.renditions))
