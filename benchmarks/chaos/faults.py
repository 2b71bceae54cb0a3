"""Ways to answer wrongly, and when: each is asked before a request is passed on, and returns None to let it pass."""

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

_LOOK_SECONDS = 0.5
_DRIP_SECONDS = 0.5  # never silent for long enough to be given up for that

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


async def behaves(request: web.Request) -> None:
    """Lets everything pass."""


def answers(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """Answers with this status."""

    async def fault(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return fault


async def resets(request: web.Request) -> web.StreamResponse:
    """Cuts the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def hangs(request: web.Request) -> web.StreamResponse:
    """Never answers; ends when whoever asked is gone."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110  (it has no event)
        await asyncio.sleep(_LOOK_SECONDS)
    return web.Response()


async def lies(request: web.Request) -> web.StreamResponse | None:
    """Says of every object that it has been stored, and forgets it."""
    if request.method != "PUT":
        return None
    etag = hashlib.md5(await request.read(), usedforsecurity=False).hexdigest()
    return web.Response(headers={"ETag": f'"{etag}"'})


async def drips(request: web.Request) -> web.StreamResponse:
    """Sends what may become a picture, two bytes a second."""
    response = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
    response.content_length = 100_000
    await response.prepare(request)
    with suppress(ConnectionError):  # whoever asked is gone
        await response.write(b"\xff\xd8\xff\xe0")
        while True:
            await asyncio.sleep(_DRIP_SECONDS)
            await response.write(b"\x00")
    return response


async def redirects_to_itself(request: web.Request) -> web.StreamResponse:
    """Sends everybody round in a circle."""
    return web.Response(status=302, headers={"Location": request.raw_path})


def slowly(seconds: float) -> Fault:
    """Lets everything pass, later."""

    async def fault(request: web.Request) -> None:
        await asyncio.sleep(seconds)

    return fault


def sometimes(fault: Fault, share: float, chance: random.Random) -> Fault:
    """Misbehaves to this share of the requests."""

    async def drawn(request: web.Request) -> web.StreamResponse | None:
        return await fault(request) if chance.random() < share else None

    return drawn


def at_first(fault: Fault, seconds: float, then: Fault = behaves) -> Fault:
    """Misbehaves for so long, counted from the first request."""
    began = 0.0

    async def outage(request: web.Request) -> web.StreamResponse | None:
        nonlocal began
        began = began or time.monotonic()
        return await (fault if time.monotonic() - began < seconds else then)(request)

    return outage


def by_turns(fault: Fault, seconds: float) -> Fault:
    """Misbehaves for so long, behaves for as long, and so on."""

    async def flapping(request: web.Request) -> web.StreamResponse | None:
        return await (fault if time.monotonic() // seconds % 2 else behaves)(request)

    return flapping
