"""One attempt at a job: what it has brought so far, and the outcome that it ends in."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, field

from cdn_pipeline.collections import Collection
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.fetch.body import BodyRoom
from cdn_pipeline.fetch.client import Download, NotModified
from cdn_pipeline.media.decode import sniff
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.store.labels import Label


@dataclass(slots=True)
class Attempt:
    """What an attempt has brought so far. Times in milliseconds; `None` means that the stage was not reached."""

    job: DueJob
    room: BodyRoom = field(default_factory=BodyRoom)
    limit: asyncio.Timeout | None = None  # of time; stands still while the picture waits for its turn
    started: float = field(default_factory=time.monotonic)
    original: StoredOriginal | None = None
    renditions: tuple[NewRendition, ...] = ()
    placeholder: str | None = None  # of what is to be published
    download_ms: int | None = None
    transcode_ms: int | None = None
    upload_ms: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    stage: Stage = field(init=False)
    """Where the next attempt begins if this one comes to nothing."""

    def __post_init__(self) -> None:
        # A job that was left at a later stage, or was in hand, when its image took another identity: the stored
        # original is of the picture before.
        is_stored = self.job.original_identity == self.job.identity
        self.stage = self.job.stage if is_stored else Stage.DOWNLOAD

    def validators(self, url: str) -> dict[str, str | None]:
        """What lets the host answer that its picture is still the one that we have, for `Downloader.download`.

        Nothing unless that answer would end the job, and only for the URL that the stored original came from. Nothing
        after a failure either: it may be that the store has lost the original.
        """
        job = self.job
        is_its_source = (url, job.identity, job.ranks[0]) == (job.urls[0], job.original_identity, job.original_rank)
        if not is_its_source or not job.up_to_date or job.force or job.last_failure is not None:
            return {}
        return {"etag": job.source_etag, "last_modified": job.source_last_modified}

    def note(self, download: Download | NotModified) -> None:
        """Notes what the host's answer cost."""
        self.download_ms = download.milliseconds
        if isinstance(download, Download):
            self.bytes_in = len(download.data)

    def keep(self, original: StoredOriginal) -> None:
        """Notes that the original is in the store: it need not be downloaded twice."""
        self.original = original
        self.stage = Stage.ENCODE

    def label(self, collection: Collection, sha256: str, original: StoredOriginal | None = None) -> Label:
        """What objects made of this original say of themselves; None: it is the one that the catalog knows."""
        job = self.job
        return Label(
            collection=collection.name,
            owner_id=job.owner_id,
            source_type=job.source_type,
            source_id=job.source_id,
            media_id=job.media_id,
            original_sha256=sha256,
            identity=original.identity if original else job.original_identity,
            rank=original.rank if original else job.original_rank,
            observed_at=job.observed_at,
            taken_at=job.taken_at,
        )

    def ends(
        self,
        verdict: Verdict,
        stage: Stage,
        failure: FailureKind | None = None,
        detail: str = "",
        retry_in_seconds: float = 0.0,
    ) -> Outcome:
        """The outcome; `stage` is what comes next for the image."""
        return Outcome(
            job_id=self.job.job_id,
            asset_id=self.job.asset_id,
            shard=self.job.shard,
            verdict=verdict,
            stage=stage,
            identity=self.job.identity,
            source_url=self.job.urls[0],
            claimed_at=self.job.claimed_at,
            failure=failure,
            detail=detail,
            retry_in_seconds=retry_in_seconds,
            original=self.original,
            renditions=self.renditions,
            placeholder=self.placeholder,
            download_ms=self.download_ms,
            transcode_ms=self.transcode_ms,
            upload_ms=self.upload_ms,
            total_ms=milliseconds_since(self.started),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )


def original_of(download: Download, identity: str, rank: int) -> StoredOriginal:
    """What the catalog will know of a downloaded original."""
    return StoredOriginal(
        sha256=hashlib.sha256(download.data).hexdigest(),
        identity=identity,
        rank=rank,
        file_size=len(download.data),
        format=str(sniff(download.data)),
        content_type=_plain(download.content_type),
        etag=_plain(download.etag),
        last_modified=_plain(download.last_modified),
    )


def milliseconds_since(started: float) -> int:
    """Milliseconds since a moment of `time.monotonic`."""
    return round((time.monotonic() - started) * 1000)


def _plain(header: str | None) -> str | None:
    """A header as the host sent it, unless it has other bytes than printable ASCII: Postgres refuses some of them."""
    return header if header and header.isascii() and header.isprintable() else None
