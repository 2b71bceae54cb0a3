"""Which stage bounds a deployment: a sample of its own images through the real stages, and again without each of them.

Nothing of it is recorded where it counts. The jobs are rows of a scratch catalog on this machine; objects go below
`.check/` of the deployment's own stores and are deleted again (clean-up takes what a killed process leaves there). The
deployment's catalog is only asked: for tombstones, because what was erased is not downloaded again, and for its hosts'
turns, because rates are promises to hosts whoever asks.
"""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import uuid4

import sqlalchemy as sa

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.catalog.sessions import catalog_time, open_catalog, open_source_database, transaction
from cdn_pipeline.collections import INSTAGRAM, SHARDS, Collection, RetryPolicy
from cdn_pipeline.engine.discover import take_in
from cdn_pipeline.engine.hosts import Hosts
from cdn_pipeline.engine.mirror import Mirror, open_store
from cdn_pipeline.engine.parts import Parts
from cdn_pipeline.engine.stream import ShardReport
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.null_stages import Memory, NullStage, noting, without
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.retries import longest_wait_in_run
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.queue.tombstones import Candidate, kept_out
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import read_references
from cdn_pipeline.sources.discovery import ImageReference, is_alive
from cdn_pipeline.store.objects import CHECKS

BOUNDS_FROM = 1.25  # times as fast without it; what lies below may be the noise of one short run

# An image that fails is tried once more and then left: waiting for it would be measured as well.
_HASTY = RetryPolicy(in_run=(timedelta(seconds=0.5),), later=(timedelta(days=1),), jitter=0.0)


@dataclass(frozen=True, slots=True)
class Pass:
    """One run over the sample: with all stages, or without one."""

    without: NullStage | None
    published: int
    seconds: float  # first claim to last committed outcome
    failures: Counter[FailureKind]  # of images that were not published

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.published / self.seconds if self.published else 0.0


def measure_stages(settings: Settings, size: int, *, collection: Collection = INSTAGRAM) -> Iterator[Pass]:
    """Yields a pass with all stages over a sample of at most so many images, then one without each stage.

    No pass if no source URL is alive; only the first if nothing was published.
    """
    collection = replace(collection, retry=_HASTY)
    with open_catalog(settings) as catalog, _scratch_server() as server:
        sample = draw_sample(settings, catalog, collection, size)
        memory = Memory()
        for stage in (None, *NullStage):
            if not sample:
                return
            with _scratch_settings(settings, server) as scratch:
                mirror = _ScratchMirror(scratch, catalog, collection, stage, memory)
                yield _run(mirror, sample, stage)
            sample = [reference for reference in sample if memory.has(reference)]


def draw_sample(settings: Settings, catalog: sa.Engine, collection: Collection, size: int) -> list[ImageReference]:
    """References from shards drawn at random, whose URLs are alive and that nobody had erased."""
    sample: list[ImageReference] = []
    now = transaction(catalog, catalog_time)
    with open_source_database(settings) as source:
        for shard in random.sample(SHARDS, len(SHARDS)):
            for batch in read_references(source, shard, shard):
                alive = [each for each in batch.references if any(is_alive(url, now) for url in each.candidates)]
                erased = transaction(
                    catalog, partial(kept_out, collection=collection, candidates=[*map(Candidate.of, alive)])
                )
                sample += [reference for reference in alive if reference.key not in erased]
                if len(sample) >= size:
                    return sample[:size]
    return sample


def verdict(passes: Sequence[Pass]) -> str:
    """In words, which stage bounds: the one without which most images go through in a second."""
    whole, *others = passes
    if not whole.rate:
        return "Nothing was published, so nothing can be compared."
    best = max(others, key=lambda each: each.rate)
    if best.rate >= BOUNDS_FROM * whole.rate:
        return f"{best.without} bounds this machine: {whole.rate:.1f} images/s; without it {best.rate:.1f}."
    return (
        f"No stage alone bounds this machine: {whole.rate:.1f} images/s, and {best.rate:.1f} without {best.without}. "
        "What they share does: its cores, this process, the catalog."
    )


class _ScratchMirror(Mirror):
    """A mirror of the scratch settings, without a stage or noting what the stages make."""

    def __init__(
        self, settings: Settings, catalog: sa.Engine, collection: Collection, stage: NullStage | None, memory: Memory
    ) -> None:
        super().__init__(settings, f"bench {uuid4()}", collection)
        self._real_catalog = catalog
        self._stage = stage
        self._memory = memory

    @asynccontextmanager
    async def parts(self) -> AsyncIterator[Parts]:
        allowed, patience = self.settings.allowed_networks, longest_wait_in_run(self.collection.retry)
        async with (
            super().parts() as parts,
            _SharedHosts(self._real_catalog, patience=patience, allowed_networks=allowed) as hosts,
        ):
            real = replace(parts, hosts=hosts)
            yield noting(real, self._memory) if self._stage is None else without(real, self._stage, self._memory)


class _SharedHosts(Hosts):
    """Hosts whose rates and breakers are in another catalog than the stream's jobs."""

    def look(self, connection: sa.Connection) -> Any:
        return transaction(self._catalog, super().look)


def _run(mirror: Mirror, sample: Sequence[ImageReference], stage: NullStage | None) -> Pass:
    with mirror:
        mirror.pool.start()
        transaction(mirror.catalog, partial(take_in, collection=mirror.collection, references=sample))
        selection = Selection(mirror.collection, frozenset(Stage))
        with closing(mirror.stream(sorted({each.shard for each in sample}), selection)) as items:  # type: ignore[type-var]
            tally = Tally.total(item.tally for item in items if isinstance(item, ShardReport))
    return Pass(stage, tally.published, tally.seconds, tally.failures)


@contextmanager
def _scratch_server() -> Iterator[EmbeddedPostgres]:
    with TemporaryDirectory(prefix="cdn-pipeline-scratch-") as name:
        Path(name).chmod(0o755)  # Postgres is served by another account where this one is root
        with EmbeddedPostgres(Path(name) / "postgres") as server:
            yield server


@contextmanager
def _scratch_settings(settings: Settings, server: EmbeddedPostgres) -> Iterator[Settings]:
    """The deployment's settings with a catalog of their own, and stores that are emptied at the end."""
    name = uuid4().hex
    server.ensure_database(name)
    engine = sa.create_engine(server.url(name))
    migrate(engine, settings.public_base_url)
    engine.dispose()
    changed = {
        "catalog_database_url": server.url(name),
        "object_store_url": f"{settings.objects_url}/{CHECKS}/{name}",
        "originals_store_url": f"{settings.originals_url}/{CHECKS}/{name}",
    }
    scratch = Settings(_env_file=None, **{**settings.model_dump(exclude_unset=True), **changed})  # type: ignore[call-arg]
    try:
        yield scratch
    finally:
        for url in (scratch.objects_url, scratch.originals_url):
            asyncio.run(_empty(settings, url))


async def _empty(settings: Settings, url: str) -> None:
    if urlsplit(url).scheme == "file":
        await asyncio.to_thread(shutil.rmtree, url2pathname(urlsplit(url).path), ignore_errors=True)
        return
    store = open_store(settings, url)
    for key in [key async for key in store.list()]:
        await store.delete(key)
