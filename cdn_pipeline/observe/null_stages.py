"""What stands in for a stage when a run is measured without it: the same work's results, for nothing.

What is downloaded and transcoded is noted once, by the real stages, and later given back from memory.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from obstore.store import MemoryStore

from cdn_pipeline.engine.backlog import OpenGate
from cdn_pipeline.engine.parts import Downloads, Parts, Transcodes
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.body import BodyRoom
from cdn_pipeline.fetch.client import Download, NotModified
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Transcoded
from cdn_pipeline.sources.discovery import ImageReference
from cdn_pipeline.store.objects import ObjectStore
from cdn_pipeline.store.originals import OriginalStore


class NullStage(StrEnum):
    """A stage that can be left out."""

    DOWNLOAD = "download"
    TRANSCODE = "transcode"
    STORE = "store"


@dataclass(frozen=True, slots=True)
class Memory:
    """What the real stages made: downloads by URL, renditions by the original's bytes. 0.15 MB an image as a rule."""

    downloads: dict[str, Download] = field(default_factory=dict)
    transcoded: dict[bytes, Transcoded] = field(default_factory=dict)

    def has(self, reference: ImageReference) -> bool:
        """Whether one of the image's URLs was downloaded and transcoded."""
        downloads = (self.downloads.get(candidate.url) for candidate in reference.candidates)
        return any(download is not None and download.data in self.transcoded for download in downloads)


def noting(parts: Parts, memory: Memory) -> Parts:
    """The same parts; what they make is noted."""
    return replace(
        parts,
        downloader=_NotedDownloads(parts.downloader, memory),
        transcoder=_NotedTranscodes(parts.transcoder, memory),
    )


def without(parts: Parts, stage: NullStage, memory: Memory) -> Parts:
    """The same parts but for those of one stage, which costs next to nothing."""
    match stage:
        case NullStage.DOWNLOAD:
            return replace(parts, downloader=_DownloadsFromMemory(memory), hosts=_NoHosts())
        case NullStage.TRANSCODE:
            return replace(parts, transcoder=_TranscodesFromMemory(memory))
        case NullStage.STORE:
            nowhere = ObjectStore(MemoryStore(), "memory:///")
            return replace(parts, objects=nowhere, originals=OriginalStore(nowhere))


@dataclass(frozen=True, slots=True)
class _NotedDownloads:
    real: Downloads
    memory: Memory

    async def download(
        self, url: str, *, room: BodyRoom | None = None, etag: str | None = None, last_modified: str | None = None
    ) -> Download | NotModified:
        download = await self.real.download(url, room=room, etag=etag, last_modified=last_modified)
        if isinstance(download, Download):
            self.memory.downloads[url] = download
        return download


@dataclass(frozen=True, slots=True)
class _NotedTranscodes:
    real: Transcodes
    memory: Memory

    async def transcode(self, data: bytes, recipe: Recipe) -> Transcoded:
        transcoded = self.memory.transcoded[data] = await self.real.transcode(data, recipe)
        return transcoded


@dataclass(frozen=True, slots=True)
class _DownloadsFromMemory:
    memory: Memory

    async def download(self, url: str, **_: object) -> Download:
        if url not in self.memory.downloads:
            raise ImageFailure(FailureKind.SOURCE_URL_404, "it was not downloaded the first time either")
        return self.memory.downloads[url]


@dataclass(frozen=True, slots=True)
class _TranscodesFromMemory:
    memory: Memory

    async def transcode(self, data: bytes, recipe: Recipe) -> Transcoded:
        if data not in self.memory.transcoded:
            raise ImageFailure(FailureKind.NOT_AN_IMAGE, "the source sends other bytes than the first time")
        return self.memory.transcoded[data]


class _NoHosts(OpenGate):
    """Who asks no host waits for none."""

    @asynccontextmanager
    async def visit(self, name: str) -> AsyncIterator[None]:
        """Goes."""
        yield
