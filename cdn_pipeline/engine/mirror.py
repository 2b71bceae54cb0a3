"""The engine of a run: the stream on a thread and event loop of its own, reporting finished shards as they come.

The caller's thread only waits on a queue, so an interrupt (Dagster raises it in the main thread, at any bytecode)
never lands inside the event loop.
"""

import asyncio
import logging
import os
import queue
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import open_catalog, open_source_database
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.engine.discover import Discovered, discover
from cdn_pipeline.engine.hosts import Hosts
from cdn_pipeline.engine.images import IMAGE_SECONDS, ImageProcessor
from cdn_pipeline.engine.parts import Parts
from cdn_pipeline.engine.stream import ShardReport, Stream
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.engine.transcoding import Transcoder, transcoding_pool
from cdn_pipeline.fetch.client import Downloader
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.leases import Run, hold_run
from cdn_pipeline.queue.retries import longest_wait_in_run
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import REQUEST_TIMEOUT, ObjectStore, cache_control
from cdn_pipeline.store.originals import OriginalStore

TRANSCODE_CPU_SECONDS = 30.0  # a 50-megapixel photograph takes about 2, alpha up to 9; on the clock all of an attempt
PROGRESS_EVERY_SECONDS = 10.0
_STOP_SECONDS = 20.0  # releasing what is in hand takes about 0.3; a catalog that is gone must not hold the run

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come: images with an outcome, and shards that are not finished."""

    tally: Tally
    open_shards: int


_Item = ShardReport | Progress | BaseException | None


class Mirror:
    """What a run works with: catalog, source database, stores, the worker pool. A context manager, one per run."""

    def __init__(self, settings: Settings, run_id: str, collection: Collection = INSTAGRAM) -> None:
        self.settings = settings
        self.collection = collection
        self._run_id = run_id
        self._resources = ExitStack()

    def __enter__(self) -> "Mirror":
        with ExitStack() as stack:
            self.pool = transcoding_pool(usable_cores(), IMAGE_SECONDS, TRANSCODE_CPU_SECONDS)
            stack.callback(self.pool.close)
            self.catalog: sa.Engine = stack.enter_context(open_catalog(self.settings))
            self.source: sa.Engine = stack.enter_context(open_source_database(self.settings))
            self.run: Run = stack.enter_context(hold_run(self.catalog, self._run_id))
            self.objects = open_store(self.settings, self.settings.objects_url)
            self.originals = OriginalStore(open_store(self.settings, self.settings.originals_url))
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def discover(self, shards: Sequence[str], *, changed_only: bool = False) -> Iterator[Discovered]:
        """Compares the source rows of the shards with the catalog; yields every shard when it is done.

        With `changed_only` no more rows are read than have changed since the last time.

        The worker pool starts meanwhile, so that it is ready when the first image has been downloaded.
        """
        self.pool.start()
        return discover(self.source, self.catalog, self.collection, shards, changed_only=changed_only)

    def stream(
        self, shards: Sequence[str], selection: Selection, *, limit: int | None = None
    ) -> Iterator[ShardReport | Progress]:
        """Works through the due jobs of the shards; yields every shard when it is finished, and progress in between.

        Once per run. Closing the iterator early releases what is in hand. Raises whatever ended the work.
        """
        worker = _StreamThread(self, selection, limit, shards)
        try:
            worker.start()
            yield from worker.reports()
        finally:
            worker.close()

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[Parts]:
        """What the stages of a stream work with, on its event loop. Who measures a run without a stage overrides it."""
        allowed, patience = self.settings.allowed_networks, longest_wait_in_run(self.collection.retry)
        async with (
            Downloader(allowed_networks=allowed) as downloader,
            Hosts(self.catalog, patience=patience, allowed_networks=allowed) as hosts,
        ):
            yield Parts(
                downloader=downloader,
                hosts=hosts,
                transcoder=Transcoder(self.pool),
                objects=self.objects,
                originals=self.originals,
                cache_control=cache_control(self.settings.browser_cache_days),
            )


class _StreamThread:
    """Runs one stream; `reports` and `close` are for the caller's thread."""

    def __init__(self, mirror: Mirror, selection: Selection, limit: int | None, shards: Sequence[str]) -> None:
        self._mirror = mirror
        self._selection = selection
        self._limit = limit
        self._shards = shards
        self._items: queue.Queue[_Item] = queue.Queue()
        self._ready = threading.Event()
        self._stream: Stream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="mirror-stream", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def reports(self) -> Iterator[ShardReport | Progress]:
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stops the stream and waits until its leases are released; at once if it has ended."""
        if self._thread.is_alive():
            self._ready.wait(_STOP_SECONDS)
        if self._loop and self._stream:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._stream.stop)
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        if self._thread.is_alive():
            _log.warning("the stream has not stopped after %.0f s; its leases end with the run", _STOP_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
            self._items.put(None)
        except BaseException as error:
            self._items.put(error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        mirror = self._mirror
        async with mirror.parts() as parts:
            processor = ImageProcessor(parts, mirror.collection, self._selection.stages)
            self._loop = asyncio.get_running_loop()
            self._stream = Stream(
                mirror.catalog,
                mirror.run,
                self._selection,
                processor.process,
                self._items.put,
                limit=self._limit,
                gate=parts.hosts,
            )
            self._ready.set()
            progress = asyncio.create_task(self._tell_progress(self._stream))
            try:
                await self._stream.run(self._shards)
            finally:
                progress.cancel()

    async def _tell_progress(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(PROGRESS_EVERY_SECONDS)
            self._items.put(Progress(stream.tally(), stream.open_shards))


def usable_cores() -> int:
    """The cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def open_store(settings: Settings, url: str, *, timeout: timedelta = REQUEST_TIMEOUT) -> ObjectStore:
    """The store at `settings.objects_url` or `settings.originals_url`, with the settings' endpoint and credentials."""
    secret = settings.r2_secret_access_key
    return ObjectStore.from_url(
        url,
        endpoint_url=settings.s3_endpoint_url,
        access_key_id=settings.r2_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
        timeout=timeout,
    )
