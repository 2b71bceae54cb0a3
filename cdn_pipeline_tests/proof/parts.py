"""What a worker works with: stores in memory that can be made to fail, and a pool without processes."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum, auto
from functools import lru_cache
from typing import Any, cast

from obstore.store import MemoryStore

from cdn_pipeline.engine.hosts import Hosts
from cdn_pipeline.engine.parts import Parts
from cdn_pipeline.engine.pool import PoolBroken, WorkerPool
from cdn_pipeline.engine.transcoding import Transcoder
from cdn_pipeline.fetch.client import Downloader
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Transcoded, transcode
from cdn_pipeline.store.objects import ObjectStore, StoreUnavailable
from cdn_pipeline.store.originals import OriginalStore
from cdn_pipeline_tests.proof.source import Host, Source

transcoded = lru_cache(maxsize=1000)(transcode)


class Killed(BaseException):
    """The worker's process ends here."""


class Trouble(StrEnum):
    """What goes wrong around one attempt."""

    NOTHING = auto()
    POOL_BREAKS = auto()
    STORE_FAILS = auto()
    KILLED = auto()


@dataclass(slots=True)
class Fate:
    """The trouble of the attempt in hand: with the pool, or with its store after so many puts."""

    trouble: Trouble = Trouble.NOTHING
    puts_before: int = 0

    def put(self) -> None:
        """Raises if this put is the one that comes to nothing."""
        self.puts_before -= 1
        if self.puts_before < 0 and self.trouble is Trouble.STORE_FAILS:
            raise StoreUnavailable("no answer")
        if self.puts_before < 0 and self.trouble is Trouble.KILLED:
            raise Killed


class _Objects(ObjectStore):
    """A store in memory."""

    def __init__(self, memory: MemoryStore, fate: Fate) -> None:
        super().__init__(cast(Any, memory), "memory:///")
        self._fate = fate

    async def put_new(self, key: str, data: bytes, **more: Any) -> bool:
        self._fate.put()
        return await super().put_new(key, data, **more)


@dataclass(slots=True)
class _Pool:
    """Calls at once, in this process."""

    fate: Fate

    async def run(
        self,
        function: Callable[[bytes, Recipe, int], Transcoded],
        data: bytes,
        recipe: Recipe,
        max_pixels: int,
        *,
        memory_bytes: int,
    ) -> Transcoded:
        assert function is transcode
        if self.fate.trouble is Trouble.POOL_BREAKS:
            raise PoolBroken("a worker process was lost")
        return transcoded(data, recipe)


class _Hosts:
    """Lets everybody in."""

    @asynccontextmanager
    async def visit(self, name: str) -> AsyncIterator[None]:
        yield


@dataclass(slots=True)
class World:
    """Stores and source, which outlive every worker."""

    source: Source = field(default_factory=Source)
    fate: Fate = field(default_factory=Fate)
    objects: MemoryStore = field(default_factory=MemoryStore)
    originals: MemoryStore = field(default_factory=MemoryStore)

    def parts(self) -> Parts:
        """For one run."""
        return Parts(
            downloader=cast(Downloader, Host(self.source)),
            hosts=cast(Hosts, _Hosts()),
            transcoder=Transcoder(cast(WorkerPool, _Pool(self.fate))),
            objects=_Objects(self.objects, self.fate),
            originals=OriginalStore(_Objects(self.originals, self.fate)),
        )

    def lose_originals(self) -> None:
        """The private store loses all that it has."""
        for batch in self.originals.list():
            for meta in batch:
                self.originals.delete(meta["path"])

    def stored(self) -> Mapping[str, bytes]:
        """All renditions that are in the store, by key."""
        keys = [meta["path"] for batch in self.objects.list() for meta in batch]
        return {key: self.objects.get(key).bytes().to_bytes() for key in keys}
