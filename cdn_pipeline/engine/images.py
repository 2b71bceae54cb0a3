"""One image through its stages: download, original, renditions, publication. Knows nothing of the queue's order."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from cdn_pipeline.catalog.sessions import is_away
from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.attempt import Attempt, milliseconds_since, original_of
from cdn_pipeline.engine.hosts import HostShut
from cdn_pipeline.engine.parts import Parts
from cdn_pipeline.engine.pool import PoolBroken, PoolUnusable
from cdn_pipeline.failures import FailureKind, ImageFailure, Remedy
from cdn_pipeline.fetch.body import LARGE_BODIES, BodyRoom, standing_still
from cdn_pipeline.fetch.client import Download, NotModified
from cdn_pipeline.fetch.hosts import host_of
from cdn_pipeline.media.transcode import Rendition, Transcoded
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.retries import decide
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.discovery import CLOCK_TOLERANCE
from cdn_pipeline.store.keys import path_of, rendition_key
from cdn_pipeline.store.labels import RenditionLabel, placeholder_in
from cdn_pipeline.store.objects import ObjectMissing, StoreUnavailable

# For one attempt, waiting for a turn at its host included. Not for transcoding: a worker's task has a limit of its own,
# and the wait for a worker is not the picture's fault.
IMAGE_SECONDS = 60.0
MAX_RELEASES = 3  # of one job in a run because pool or store failed it; then it counts as a failed attempt

_T = TypeVar("_T")

# Of several URLs that failed, the failure that leaves most hope speaks for the image.
_HOPE = {Remedy.TRANSIENT: 0, Remedy.FRESH_URL: 1, Remedy.PERMANENT: 2}

_log = logging.getLogger(__name__)


class ImageProcessor:
    """Takes a claimed job as far as the selected stages go."""

    def __init__(self, parts: Parts, collection: Collection, stages: frozenset[Stage]) -> None:
        self._parts = parts
        self._collection = collection
        self._stages = stages
        self._releases: Counter[uuid.UUID] = Counter()
        self._large_bodies = asyncio.Semaphore(LARGE_BODIES)
        self._look_at_stores: asyncio.Task[bool] | None = None

    async def process(self, job: DueJob) -> Outcome:
        """What became of the job. Whatever is wrong with the image comes back as an outcome.

        Raises:
            PoolUnusable: no worker can be started.
            CancelledError: the run stops; the job is still to be released.
        """
        attempt = Attempt(job, BodyRoom(self._large_bodies))
        try:
            async with asyncio.timeout(IMAGE_SECONDS) as attempt.limit:
                return await self._advance(attempt)
        except PoolUnusable:
            raise
        except HostShut as shut:
            return self._untouched(attempt, shut)
        except PoolBroken as error:
            return self._let_go(attempt, error)
        except StoreUnavailable as error:
            if await self._stores_answer():  # and refuse this key
                return self._let_go(attempt, error, FailureKind.UPLOAD_FAILED)
            return attempt.ends(Verdict.RELEASED, attempt.stage, FailureKind.STORE_UNAVAILABLE, detail=str(error))
        except Exception as error:
            if is_away(error):  # the catalog, when the image's host was to be asked: the run waits for it
                return self._untouched(attempt, error)
            return self._failed(attempt, _failure_of(error))
        finally:
            attempt.room.leave()

    def _untouched(self, attempt: Attempt, error: Exception) -> Outcome:
        return replace(attempt.ends(Verdict.RELEASED, attempt.stage, detail=str(error)), untouched=True)

    async def _stores_answer(self) -> bool:
        """Whether both stores take objects; asked once for all images that fail together."""
        if self._look_at_stores is None or self._look_at_stores.done():
            self._look_at_stores = asyncio.create_task(self._check_stores())
        return await asyncio.shield(self._look_at_stores)

    async def _check_stores(self) -> bool:
        try:
            await self._parts.objects.check()
            await self._parts.originals.check()
        except StoreUnavailable:
            return False
        return True

    def _let_go(self, attempt: Attempt, error: Exception, failure: FailureKind | None = None) -> Outcome:
        """Pool or store failed the image: not its fault, unless it happens to this one again and again."""
        self._releases[attempt.job.job_id] += 1
        if self._releases[attempt.job.job_id] > MAX_RELEASES:
            return self._failed(attempt, _failure_of(error))
        return attempt.ends(Verdict.RELEASED, attempt.stage, failure, detail=str(error))

    def _failed(self, attempt: Attempt, failure: ImageFailure) -> Outcome:
        job = attempt.job
        url_lives = job.url_lives(datetime.now(UTC)) if attempt.stage is Stage.DOWNLOAD else None
        decision = decide(self._collection.retry, failure, job.retry_count, job.last_failure, url_lives=url_lives)
        stage = Stage.DOWNLOAD if failure.kind is FailureKind.ORIGINAL_MISSING else attempt.stage
        return attempt.ends(decision.verdict, stage, decision.kind, failure.detail, decision.retry_in.total_seconds())

    async def _advance(self, attempt: Attempt) -> Outcome:
        # A picture that a rollout found changed is downloaded for the collection's own recipe.
        rolls_out = attempt.job.recipe != self._collection.recipe
        if attempt.stage not in self._stages or (rolls_out and attempt.stage is Stage.DOWNLOAD):
            return attempt.ends(Verdict.RELEASED, attempt.stage, detail="the picture changed: to be downloaded first")
        match attempt.stage:
            case Stage.DOWNLOAD:
                ended = await self._start_from_url(attempt)
                if ended is not None:
                    return ended
            case Stage.ENCODE:
                await self._encode_stored(attempt)
            case Stage.PUBLISH:
                await self._verify_stored(attempt)
        verdict = Verdict.PUBLISHED if Stage.PUBLISH in self._stages else Verdict.ADVANCED
        return attempt.ends(verdict, Stage.PUBLISH)

    # -- download --

    async def _start_from_url(self, attempt: Attempt) -> Outcome | None:
        """Downloads and encodes; returns an outcome where that is the end of it."""
        job = attempt.job
        download, rank = await self._download(attempt)
        if isinstance(download, NotModified):
            return attempt.ends(Verdict.UNCHANGED, Stage.DOWNLOAD)
        original = original_of(download, job.identity, rank)
        up_to_date = job.up_to_date and not job.force
        have_better = job.original_identity == job.identity and rank < (job.original_rank or 0)
        if have_better and job.last_failure is FailureKind.ORIGINAL_MISSING:
            if job.current_paths:  # what is visible stays: it is the better picture
                detail = "the store lost the original, and the source has a lesser one now"
                return attempt.ends(Verdict.FAILED, Stage.DOWNLOAD, FailureKind.SOURCE_GONE, detail)
            have_better = False
        if up_to_date and have_better:
            return attempt.ends(Verdict.UNCHANGED, Stage.DOWNLOAD)
        if up_to_date and original.sha256 == job.original_sha256:
            await self._store_original(attempt, download.data, original)
            return attempt.ends(Verdict.UNCHANGED, Stage.DOWNLOAD)
        if Stage.ENCODE in self._stages:
            await (self._encode_stored(attempt) if have_better else self._encode_new(attempt, download.data, original))
            return None
        if not have_better:
            await self._store_original(attempt, download.data, original)
        return attempt.ends(Verdict.ADVANCED, Stage.ENCODE)

    async def _download(self, attempt: Attempt) -> tuple[Download | NotModified, int]:
        """The first of the image's URLs that answers, best rank first, and its rank.

        A passing trouble is no reason to take a lesser picture, unless it has lasted for all the retries of a run. Nor
        is a breaker: an image whose best URL is behind one stays as it is.
        """
        url_lives = attempt.job.url_lives(datetime.now(UTC))
        if url_lives is not None and url_lives < -CLOCK_TOLERANCE:  # not worth a request, which a living URL may need
            raise ImageFailure(FailureKind.SOURCE_URL_EXPIRED, f"since {attempt.job.url_expires_at}")
        patient = attempt.job.retry_count < len(self._collection.retry.in_run)
        failures: list[ImageFailure] = []
        for url, rank in zip(attempt.job.urls, attempt.job.ranks, strict=True):
            is_best = url == attempt.job.urls[0]
            try:
                async with self._parts.hosts.visit(attempt.job.host if is_best else host_of(url)):
                    download = await self._parts.downloader.download(url, room=attempt.room, **attempt.validators(url))
            except HostShut as shut:
                if is_best:
                    raise
                failures.append(shut.failure)
                continue
            except ImageFailure as failure:
                if patient and failure.kind.remedy is Remedy.TRANSIENT:
                    raise
                failures.append(failure)
                continue
            attempt.note(download)
            return download, rank
        raise min(failures, key=lambda failure: _HOPE[failure.kind.remedy])

    # -- originals and renditions --

    async def _store_original(self, attempt: Attempt, data: bytes, original: StoredOriginal) -> None:
        """Also when the catalog has it already: a store that lost it gets it back."""
        await self._parts.originals.put(
            data,
            original.sha256,
            content_type=f"image/{original.format}",
            metadata=attempt.label(self._collection, original.sha256, original).metadata(),
        )
        attempt.keep(original)

    async def _encode_stored(self, attempt: Attempt) -> None:
        sha256 = attempt.job.original_sha256
        if sha256 is None:
            raise ImageFailure(FailureKind.ORIGINAL_MISSING, "the catalog knows of none")
        await attempt.room.grow(attempt.job.original_file_size or 0, limit=attempt.limit)
        data = await self._parts.originals.get(sha256)
        await self._store_renditions(attempt, sha256, await self._transcode(attempt, data))

    async def _encode_new(self, attempt: Attempt, data: bytes, original: StoredOriginal) -> None:
        """Transcodes and at the same time stores the original, then stores the renditions."""
        transcoded = await _both(self._transcode(attempt, data), self._store_original(attempt, data, original))
        attempt.keep(replace(original, width=transcoded.width, height=transcoded.height))
        await self._store_renditions(attempt, original.sha256, transcoded)

    async def _transcode(self, attempt: Attempt, data: bytes) -> Transcoded:
        with standing_still(attempt.limit):
            return await self._parts.transcoder.transcode(data, attempt.job.recipe)

    async def _store_renditions(self, attempt: Attempt, sha256: str, transcoded: Transcoded) -> None:
        attempt.transcode_ms = round(transcoded.cpu_ms)
        started = time.monotonic()
        stored = await _all(
            *(self._store_rendition(attempt, rendition, sha256, transcoded) for rendition in transcoded.renditions)
        )
        attempt.renditions = tuple(stored)
        attempt.placeholder = transcoded.placeholder
        attempt.upload_ms = milliseconds_since(started)
        attempt.bytes_out = sum(rendition.file_size for rendition in stored)

    async def _store_rendition(
        self, attempt: Attempt, rendition: Rendition, original_sha256: str, transcoded: Transcoded
    ) -> NewRendition:
        """Puts and verifies: a CDN caches the 404 of a URL that is handed out too early, so no store is trusted.

        The object of an earlier picture that comes back is put anew: labels tell which picture is the last.
        """
        job, recipe = attempt.job, attempt.job.recipe
        key = rendition_key(
            self._collection.key_prefix, job.owner_id, job.media_id, rendition.size, rendition.sha256, recipe.format
        )
        is_current = path_of(key) in job.current_paths
        label = RenditionLabel(
            attempt.label(self._collection, original_sha256, attempt.original),
            recipe=recipe.name,
            recipe_version=recipe.version,
            size=rendition.size,
            sha256=rendition.sha256,
            width=rendition.width,
            height=rendition.height,
            encoder=transcoded.encoder,
            placeholder=transcoded.placeholder,
        )
        await self._parts.objects.put_verified(
            key,
            rendition.data,
            content_type=recipe.content_type,
            cache_control=self._parts.cache_control,
            metadata=label.metadata(),
            expect_present=is_current or job.retry_count > 0,
            renew=not is_current or original_sha256 != job.original_sha256,
        )
        return NewRendition(
            size_name=rendition.size,
            format=recipe.format,
            width=rendition.width,
            height=rendition.height,
            file_size=len(rendition.data),
            content_hash=rendition.sha256,
            path=path_of(key),
            original_sha256=original_sha256,
            recipe=recipe.name,
            recipe_version=recipe.version,
            encoder=transcoded.encoder,
        )

    # -- publication --

    async def _verify_stored(self, attempt: Attempt) -> None:
        job = attempt.job
        attempt.stage = Stage.ENCODE  # what is missing is made again
        if not job.stored and not job.up_to_date:
            raise ImageFailure(FailureKind.UPLOAD_FAILED, "no rendition waits to be published")
        for rendition in job.stored:
            head = await self._parts.objects.head(rendition.path.removeprefix("/"))
            if head is None or head.size != rendition.file_size:
                raise ImageFailure(FailureKind.UPLOAD_FAILED, f"{rendition.path} is not in the store any more")
            attempt.placeholder = placeholder_in(head.metadata) or attempt.placeholder
        attempt.stage = Stage.PUBLISH


def _failure_of(error: Exception) -> ImageFailure:
    match error:
        case ImageFailure():
            return error
        case TimeoutError():
            return ImageFailure(FailureKind.IMAGE_TIMEOUT, f"over {IMAGE_SECONDS:.0f} s")
        case PoolBroken():
            return ImageFailure(FailureKind.WORKER_DIED, f"lost {MAX_RELEASES} times: {error}")
        case StoreUnavailable():
            return ImageFailure(FailureKind.UPLOAD_FAILED, str(error))
        case ObjectMissing():
            return ImageFailure(FailureKind.ORIGINAL_MISSING, str(error))
        case _:  # one image never fails a run, not even by a bug of ours
            _log.error("unexpected error in the work on an image", exc_info=error)
            return ImageFailure(FailureKind.INTERNAL_ERROR, ascii(error))


async def _both(work: Awaitable[_T], storing: Awaitable[None]) -> _T:
    """Waits for both to end before it raises, so that what was stored is known even if the work failed."""
    done, stored = await asyncio.gather(work, storing, return_exceptions=True)
    if isinstance(done, BaseException):
        raise done
    if isinstance(stored, BaseException):
        raise stored
    return done


async def _all(*work: Awaitable[_T]) -> list[_T]:
    """Waits for all to end before it raises, so that nothing is put into the store once the outcome is known."""
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise errors[0]
    return [result for result in results if not isinstance(result, BaseException)]
