"""What the stages of a stream work with, each part by what is asked of it: whoever builds a run may pass in another."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from cdn_pipeline.engine.backlog import Gate
from cdn_pipeline.fetch.body import BodyRoom
from cdn_pipeline.fetch.client import Download, NotModified
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Transcoded
from cdn_pipeline.store.objects import CACHE_CONTROL, ObjectStore
from cdn_pipeline.store.originals import OriginalStore


class Downloads(Protocol):
    """Downloads images, as `Downloader` does over HTTP."""

    async def download(
        self, url: str, *, room: BodyRoom | None = None, etag: str | None = None, last_modified: str | None = None
    ) -> Download | NotModified:
        """As `Downloader.download`."""


class Transcodes(Protocol):
    """Makes renditions, as `Transcoder` does in worker processes."""

    async def transcode(self, data: bytes, recipe: Recipe) -> Transcoded:
        """As `Transcoder.transcode`."""


class HostGate(Gate, Protocol):
    """The stream's gate and its images' way to their hosts, as `Hosts` is."""

    def visit(self, name: str) -> AbstractAsyncContextManager[None]:
        """As `Hosts.visit`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What stages work with; one set per run."""

    downloader: Downloads
    hosts: HostGate
    transcoder: Transcodes
    objects: ObjectStore
    originals: OriginalStore
    cache_control: str = CACHE_CONTROL  # header of the renditions
