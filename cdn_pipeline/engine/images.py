"""One image through its stages: download, original, renditions, publication. Knows nothing of the queue's order."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.pool import PoolBroken, TaskTimeout, WorkerDied, WorkerPool
from cdn_pipeline.failures import FailureKind, ImageFailure, Remedy
from cdn_pipeline.fetch.client import Download, Downloader
from cdn_pipeline.fetch.hosts import HostRates
from cdn_pipeline.media.decode import sniff
from cdn_pipeline.media.transcode import Rendition, Transcoded, transcode
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.retries import decide
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.store.keys import path_of, rendition_key
from cdn_pipeline.store.objects import CACHE_CONTROL, ObjectMissing, ObjectStore, StoreUnavailable
from cdn_pipeline.store.originals import OriginalStore

IMAGE_SECONDS = 60.0  # for one attempt, waiting for a turn at its host and for a worker included

_T = TypeVar("_T")

# Of several URLs that failed, the failure that leaves most hope speaks for the image.
_HOPE = {Remedy.TRANSIENT: 0, Remedy.FRESH_URL: 1, Remedy.PERMANENT: 2}


@dataclass(frozen=True, slots=True)
class Parts:
    """What stages work with; one set per run."""

    downloader: Downloader
    hosts: HostRates
    pool: WorkerPool
    objects: ObjectStore
    originals: OriginalStore


@dataclass(slots=True)
class _Attempt:
    """What one attempt has brought so far."""

    job: DueJob
    started: float
    data: bytes = b""
    original: StoredOriginal | None = None
    renditions: tuple[NewRendition, ...] = ()
    download_ms: int | None = None
    transcode_ms: int | None = None
    upload_ms: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None

    def ends(
        self,
        verdict: Verdict,
        stage: Stage,
        failure: FailureKind | None = None,
        detail: str = "",
        retry_in_seconds: float = 0.0,
    ) -> Outcome:
        return Outcome(
            job_id=self.job.job_id,
            asset_id=self.job.asset_id,
            shard=self.job.shard,
            verdict=verdict,
            stage=stage,
            identity=self.job.identity,
            failure=failure,
            detail=detail,
            retry_in_seconds=retry_in_seconds,
            original=self.original,
            renditions=self.renditions,
            download_ms=self.download_ms,
            transcode_ms=self.transcode_ms,
            upload_ms=self.upload_ms,
            total_ms=_since(self.started),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
        )


class ImageProcessor:
    """Takes a claimed job as far as the selected stages go."""

    def __init__(self, parts: Parts, collection: Collection, stages: frozenset[Stage]) -> None:
        self._parts = parts
        self._collection = collection
        self._stages = stages

    async def process(self, job: DueJob) -> Outcome:
        """What became of the job. Whatever is wrong with the image comes back as an outcome.

        Raises:
            PoolUnusable: no worker can be started.
            CancelledError: the run stops; the job is still to be released.
        """
        attempt = _Attempt(job, time.monotonic())
        try:
            async with asyncio.timeout(IMAGE_SECONDS):
                return await self._advance(attempt)
        except ImageFailure as failure:
            return self._failed(attempt, failure)
        except TimeoutError:
            return self._failed(attempt, ImageFailure(FailureKind.IMAGE_TIMEOUT, f"over {IMAGE_SECONDS:.0f} s"))
        except StoreUnavailable as error:
            return self._failed(attempt, ImageFailure(FailureKind.UPLOAD_FAILED, str(error)))
        except ObjectMissing as error:
            return self._failed(attempt, ImageFailure(FailureKind.ORIGINAL_MISSING, str(error)))
        except PoolBroken as error:
            return attempt.ends(Verdict.RELEASED, job.stage, detail=str(error))

    def _failed(self, attempt: _Attempt, failure: ImageFailure) -> Outcome:
        job = attempt.job
        decision = decide(self._collection.retry, failure, job.retry_count, job.last_failure)
        # What is in the store need not be downloaded twice.
        has_original = attempt.original is not None and decision.verdict is Verdict.RETRYING
        stage = Stage.ENCODE if has_original else job.stage
        if failure.kind is FailureKind.ORIGINAL_MISSING:
            stage = Stage.DOWNLOAD
        return attempt.ends(decision.verdict, stage, decision.kind, failure.detail, decision.retry_in.total_seconds())

    async def _advance(self, attempt: _Attempt) -> Outcome:
        job = attempt.job
        if job.stage is Stage.DOWNLOAD:
            ended = await self._start_from_url(attempt)
            if ended is not None:
                return ended
        elif job.stage is Stage.ENCODE:
            await self._encode_stored(attempt)
        if Stage.PUBLISH not in self._stages:
            return attempt.ends(Verdict.ADVANCED, Stage.PUBLISH)
        if job.stage is Stage.PUBLISH:
            await self._verify_stored(job)
        return attempt.ends(Verdict.PUBLISHED, Stage.PUBLISH)

    # -- download --

    async def _start_from_url(self, attempt: _Attempt) -> Outcome | None:
        """Downloads and encodes; returns an outcome where that is the end of it."""
        job = attempt.job
        download, rank = await self._download(attempt)
        original = _original_of(download, job.identity, rank)
        up_to_date = job.up_to_date and not job.force
        if original.sha256 == job.original_sha256 and up_to_date:
            attempt.original = original
            return attempt.ends(Verdict.UNCHANGED, Stage.DOWNLOAD)
        if job.original_identity == job.identity and rank < (job.original_rank or 0):  # we have a better one
            if up_to_date:
                return attempt.ends(Verdict.UNCHANGED, Stage.DOWNLOAD)
            await self._encode_stored(attempt)
            return None
        attempt.data = download.data
        if Stage.ENCODE not in self._stages:
            await self._store_original(attempt, original)
            return attempt.ends(Verdict.ADVANCED, Stage.ENCODE)
        await self._encode(attempt, original)
        return None

    async def _download(self, attempt: _Attempt) -> tuple[Download, int]:
        """The first of the image's URLs that answers, best rank first, and its rank.

        A passing trouble is no reason to take a lesser picture, unless it has lasted for all the retries of a run.
        """
        patient = attempt.job.retry_count < len(self._collection.retry.in_run)
        failures: list[ImageFailure] = []
        for url, rank in zip(attempt.job.urls, attempt.job.ranks, strict=True):
            await self._parts.hosts.turn(urlsplit(url).hostname or "")
            try:
                download = await self._parts.downloader.download(url)
            except ImageFailure as failure:
                if patient and failure.kind.remedy is Remedy.TRANSIENT:
                    raise
                failures.append(failure)
                continue
            attempt.download_ms = download.milliseconds
            attempt.bytes_in = len(download.data)
            return download, rank
        raise min(failures, key=lambda failure: _HOPE[failure.kind.remedy])

    # -- originals and renditions --

    async def _store_original(self, attempt: _Attempt, original: StoredOriginal) -> None:
        job = attempt.job
        if original.sha256 != job.original_sha256:
            await self._parts.originals.put(
                attempt.data,
                original.sha256,
                content_type=original.content_type or "application/octet-stream",
                metadata=self._metadata(job, original.sha256),
            )
        attempt.original = original

    async def _encode_stored(self, attempt: _Attempt) -> None:
        sha256 = attempt.job.original_sha256
        assert sha256 is not None, "a job waits for encoding only when its original is stored"
        attempt.data = await self._parts.originals.get(sha256)
        await self._encode(attempt, None)

    async def _encode(self, attempt: _Attempt, original: StoredOriginal | None) -> None:
        """Transcodes and stores the renditions, and at the same time the original if there is a new one."""
        storing = self._store_original(attempt, original) if original else _nothing()
        transcoded, _ = await _both(self._transcode(attempt.data), storing)
        if attempt.original:
            attempt.original = replace(attempt.original, width=transcoded.width, height=transcoded.height)
        attempt.transcode_ms = round(transcoded.cpu_ms)
        started = time.monotonic()
        sha256 = original.sha256 if original else attempt.job.original_sha256
        assert sha256 is not None
        attempt.renditions = tuple(
            await asyncio.gather(
                *(
                    self._store_rendition(attempt.job, rendition, sha256, transcoded)
                    for rendition in transcoded.renditions
                )
            )
        )
        attempt.upload_ms = _since(started)
        attempt.bytes_out = sum(rendition.file_size for rendition in attempt.renditions)

    async def _transcode(self, data: bytes) -> Transcoded:
        try:
            return await self._parts.pool.run(transcode, data, self._collection.recipe)
        except TaskTimeout as error:
            raise ImageFailure(FailureKind.TRANSCODE_TIMEOUT, str(error)) from error
        except WorkerDied as error:
            raise ImageFailure(FailureKind.WORKER_DIED, str(error)) from error
        except MemoryError as error:
            raise ImageFailure(FailureKind.OUT_OF_MEMORY, str(error)) from error

    async def _store_rendition(
        self, job: DueJob, rendition: Rendition, original_sha256: str, transcoded: Transcoded
    ) -> NewRendition:
        recipe = self._collection.recipe
        key = rendition_key(
            self._collection.key_prefix, job.owner_id, job.media_id, rendition.size, rendition.sha256, recipe.format
        )
        path = path_of(key)
        await self._parts.objects.put_new(
            key,
            rendition.data,
            content_type=recipe.content_type,
            cache_control=CACHE_CONTROL,
            metadata={
                **self._metadata(job, original_sha256),
                "recipe": f"{recipe.name}/{recipe.version}",
                "size": rendition.size,
            },
            expect_present=path in job.current_paths or job.retry_count > 0,
        )
        # A CDN caches the 404 of a URL that was handed out too early, so a store's word is not enough.
        if not await self._parts.objects.stored(key, rendition.data):
            raise ImageFailure(FailureKind.UPLOAD_FAILED, f"{key} is not in the store after it was put there")
        return NewRendition(
            size_name=rendition.size,
            format=recipe.format,
            width=rendition.width,
            height=rendition.height,
            file_size=len(rendition.data),
            content_hash=rendition.sha256,
            path=path,
            original_sha256=original_sha256,
            recipe=recipe.name,
            recipe_version=recipe.version,
            encoder=transcoded.encoder,
        )

    def _metadata(self, job: DueJob, original_sha256: str) -> dict[str, str]:
        """What an object says of itself, so that the catalog can be rebuilt from the stores alone."""
        return {
            "collection": self._collection.name,
            "owner": job.owner_id,
            "source-type": job.source_type,
            "source-id": job.source_id,
            "media-id": job.media_id,
            "original": original_sha256,
        }

    # -- publication --

    async def _verify_stored(self, job: DueJob) -> None:
        for rendition in job.stored:
            head = await self._parts.objects.head(rendition.path.removeprefix("/"))
            if head is None or head.size != rendition.file_size:
                raise ImageFailure(FailureKind.UPLOAD_FAILED, f"{rendition.path} is not in the store any more")


def _original_of(download: Download, identity: str, rank: int) -> StoredOriginal:
    return StoredOriginal(
        sha256=hashlib.sha256(download.data).hexdigest(),
        identity=identity,
        rank=rank,
        file_size=len(download.data),
        format=str(sniff(download.data[:32])),
        content_type=download.content_type,
        etag=download.etag,
        last_modified=download.last_modified,
    )


async def _both(work: Awaitable[_T], storing: Awaitable[None]) -> tuple[_T, None]:
    """Waits for both to end before it raises, so that what was stored is known even if the work failed."""
    done, stored = await asyncio.gather(work, storing, return_exceptions=True)
    if isinstance(done, BaseException):
        raise done
    if isinstance(stored, BaseException):
        raise stored
    return done, None


async def _nothing() -> None:
    pass


def _since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
