"""The states of images and jobs, and which transitions are legal. docs/architecture.md draws them from here."""

from collections.abc import Mapping
from enum import StrEnum


class ImageStatus(StrEnum):
    """`cdn_image_assets.processing_status`. What is already published stays visible in every one of them."""

    PENDING = "pending"  # has an open job, or waits for a fresh URL
    DOWNLOADING = "downloading"
    PROCESSING = "processing"
    UPLOADING = "uploading"
    COMPLETED = "completed"
    FAILED = "failed"  # permanent: a new identity, a new recipe or an operator reopens it


class JobStatus(StrEnum):
    """`cdn_image_jobs.status`; queued and processing are open."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"  # its image was erased


class JobType(StrEnum):
    """`cdn_image_jobs.job_type`: why the job was opened."""

    INGEST = "ingest"
    UPDATE = "update"
    RETRY = "retry"


class Stage(StrEnum):
    """`cdn_image_jobs.stage`: what comes next for the image."""

    DOWNLOAD = "download"
    ENCODE = "encode"
    PUBLISH = "publish"


_IN_HAND = (ImageStatus.DOWNLOADING, ImageStatus.PROCESSING, ImageStatus.UPLOADING)
_ENDED = frozenset({ImageStatus.PENDING, ImageStatus.COMPLETED, ImageStatus.FAILED})

IMAGE_TRANSITIONS: Mapping[ImageStatus, frozenset[ImageStatus]] = {
    ImageStatus.PENDING: frozenset(_IN_HAND),
    **dict.fromkeys(_IN_HAND, _ENDED),
    ImageStatus.COMPLETED: frozenset({ImageStatus.PENDING}),
    ImageStatus.FAILED: frozenset({ImageStatus.PENDING}),
}

JOB_TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.PROCESSING, JobStatus.CANCELLED}),
    JobStatus.PROCESSING: frozenset({JobStatus.QUEUED, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

# The image's status while a job of this stage is in hand.
STATUS_IN_HAND: Mapping[Stage, ImageStatus] = {
    Stage.DOWNLOAD: ImageStatus.DOWNLOADING,
    Stage.ENCODE: ImageStatus.PROCESSING,
    Stage.PUBLISH: ImageStatus.UPLOADING,
}
