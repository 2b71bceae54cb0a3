"""A stand-in for the CDN: a cache in front of a store, which says what it did, and which can be told to fail."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.store.objects import CACHE_CONTROL

Fault = Callable[[bytes], web.StreamResponse]
"""The answer instead of the picture with these bytes."""


@dataclass
class Cdn:
    """Serves `/th/…` from a folder; `faults` are given first, each to one request."""

    folder: Path
    tells_cache: bool = True  # by a header, as Cloudflare does
    keeps_connections: bool = True
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    before: Callable[[str], None] = lambda path: None  # every request
    copies: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    base_url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        self.requests.append(path)
        self.before(path)
        file = self.folder / path.lstrip("/")
        cached = self.copies.get(path)
        data = cached if cached is not None else (file.read_bytes() if file.exists() else None)
        if data is None:
            return web.Response(status=404)
        if self.faults[path]:
            return self.faults[path].pop(0)(data)
        self.copies[path] = data
        response = picture(data)
        if self.tells_cache:
            response.headers["CF-Cache-Status"] = "MISS" if cached is None else "HIT"
        if not self.keeps_connections:
            response.force_close()
        return response


def picture(data: bytes, content_type: str = "image/webp", cache_control: str = CACHE_CONTROL) -> web.Response:
    return web.Response(body=data, content_type=content_type, headers={"Cache-Control": cache_control})


@contextmanager
def running_cdn(folder: Path) -> Iterator[Cdn]:
    """The CDN in front of this folder, behind a real server on this machine."""
    cdn = Cdn(folder)
    application = web.Application()
    application.add_routes([web.get("/{path:.*}", cdn.answer)])
    with in_thread(listening(application)) as cdn.base_url:
        yield cdn
