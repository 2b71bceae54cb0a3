"""Asks a URL twice, as a stranger would: on a new connection and then on the open one, each timed to the first byte."""

import hashlib
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, TraceConfig
from yarl import URL

from cdn_pipeline.fetch.addresses import SocketFactory

# Whoever waits longer for a thumbnail has seen a broken image.
_TIMEOUT = ClientTimeout(total=10.0, sock_connect=5.0)
_HEADERS = {"User-Agent": "cdn-pipeline (+delivery probe)", "Accept": "image/*,*/*;q=0.8"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP/1.1, read to its end.

    `first_byte_ms` is from the request to the answer's headers: on a new connection with DNS, TCP and TLS, on one that
    was open (`reused`) without. `cache_status` is what `CF-Cache-Status` says.
    """

    status: int
    sha256: str
    content_type: str | None
    cache_control: str | None
    cache_status: str | None
    first_byte_ms: float
    reused: bool


async def ask_twice(
    url: str,
    tls: ssl.SSLContext,
    *,
    turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    socket_factory: SocketFactory | None = None,
) -> tuple[Answer, Answer]:
    """Both answers. A server that closes its connections gives two answers of which none was `reused`.

    Redirects are answers like others, and proxies of the environment are not used. For URLs of others there is a
    `turn`, which each request waits for, and a `socket_factory` that refuses addresses.

    Raises:
        ClientError, OSError: no answer, or not to its end, within 10 seconds (`TimeoutError` is an `OSError`).
        ValueError: not a URL.
    """
    async with ClientSession(
        connector=TCPConnector(limit=1, ssl=tls, socket_factory=socket_factory),
        timeout=_TIMEOUT,
        headers=_HEADERS,
        cookie_jar=DummyCookieJar(),
        trace_configs=[_stopwatch()],
        trust_env=False,
    ) as session:
        async with turn():
            cold = await _ask(session, url)
        async with turn():
            return cold, await _ask(session, url)


async def _ask(session: ClientSession, url: str) -> Answer:
    watch = SimpleNamespace(reused=False)
    async with session.get(URL(url, encoded=True), allow_redirects=False, trace_request_ctx=watch) as response:
        digest = hashlib.sha256()
        async for chunk in response.content.iter_any():
            digest.update(chunk)
        return Answer(
            status=response.status,
            sha256=digest.hexdigest(),
            content_type=response.headers.get("Content-Type"),
            cache_control=response.headers.get("Cache-Control"),
            cache_status=response.headers.get("CF-Cache-Status"),
            first_byte_ms=1000 * (watch.answered - watch.started),
            reused=watch.reused,
        )


def _stopwatch() -> TraceConfig:
    """Notes in a request's `trace_request_ctx` when it started, when its headers had come, and on what connection."""

    async def started(_session: ClientSession, context: SimpleNamespace, _event: Any) -> None:
        context.trace_request_ctx.started = time.perf_counter()

    async def reused(_session: ClientSession, context: SimpleNamespace, _event: Any) -> None:
        context.trace_request_ctx.reused = True

    async def connected(_session: ClientSession, context: SimpleNamespace, _event: Any) -> None:
        context.trace_request_ctx.reused = False  # an open one that the server had closed is replaced

    async def answered(_session: ClientSession, context: SimpleNamespace, _event: Any) -> None:
        context.trace_request_ctx.answered = time.perf_counter()

    config = TraceConfig()
    config.on_request_start.append(started)
    config.on_connection_reuseconn.append(reused)
    config.on_connection_create_end.append(connected)
    config.on_request_end.append(answered)
    return config
