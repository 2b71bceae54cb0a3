"""HTTP servers on loopback for as long as a `with` lasts: aiohttp applications, and ASGI ones on uvicorn."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

import uvicorn
from aiohttp import web
from anyio.from_thread import start_blocking_portal
from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"

_Entered = TypeVar("_Entered")


@asynccontextmanager
async def listening(application: web.Application, host: str = LOOPBACK, port: int = 0) -> AsyncIterator[str]:
    """The base URL of an aiohttp application on this event loop, without a trailing slash; port 0 is a free one.

    Requests that are still being answered at the end have half a second. Raises `OSError` if the port is taken.
    """
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def in_thread(server: AbstractAsyncContextManager[_Entered]) -> Iterator[_Entered]:
    """Enters an asynchronous context on the event loop of a thread of its own."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server) as entered:
        yield entered


@contextmanager
def serving_asgi(application: ASGIApp) -> Iterator[str]:
    """The base URL of an ASGI application on a free port, without a trailing slash: uvicorn in a thread, with lifespan.

    Requests that are still being answered at the end have a second. Raises `RuntimeError` if the application does not
    start; the log says why.
    """
    config = uvicorn.Config(
        application, host=LOOPBACK, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with ThreadPoolExecutor(max_workers=1) as thread:
        running = thread.submit(server.run)
        try:
            while not server.started:
                if running.done():
                    raise RuntimeError("the application did not start") from running.exception()
                time.sleep(0.01)
            yield f"http://{LOOPBACK}:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True


@contextmanager
def serving_handler(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """The free port on which the standard library's server answers, a thread for each request."""
    server = ThreadingHTTPServer((LOOPBACK, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
