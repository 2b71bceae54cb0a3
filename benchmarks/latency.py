"""A TCP proxy that is as far away as it is told: a process of its own, in front of a server on this machine.

    .venv/bin/python -m benchmarks.latency --port 9001 --upstream 9000 --milliseconds 100

Every byte arrives half the latency later, in both directions, so an answer takes the whole latency (a round trip); a
new connection takes it once more, as a handshake does. What follows in a burst is delayed with it, not after it:
bandwidth is not limited.
"""

import argparse
import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.serving import LOOPBACK

_CHUNK_BYTES = 1 << 16


class DelayingProxy:
    """Passes connections on to a port of loopback; `seconds` is the latency of a round trip."""

    def __init__(self, upstream: int, seconds: float) -> None:
        self._upstream = upstream
        self._seconds = seconds

    async def serve(self, port: int) -> asyncio.Server:
        """Listens on a port of loopback; 0 is a free one."""
        return await asyncio.start_server(self._pass_on, LOOPBACK, port)

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        await asyncio.sleep(self._seconds)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(LOOPBACK, self._upstream)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._relay(reader, upstream_writer), self._relay(upstream_reader, writer))
        for each in (writer, upstream_writer):
            each.close()

    async def _relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One direction: whatever comes is sent half a latency later, in its order; the end as well."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(_send(pieces, writer))
        with suppress(ConnectionError):
            while piece := await reader.read(_CHUNK_BYTES):
                pieces.put_nowait((loop.time() + self._seconds / 2, piece))
        pieces.put_nowait((loop.time() + self._seconds / 2, b""))
        await sending


async def _send(pieces: asyncio.Queue[tuple[float, bytes]], writer: StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):  # whoever was to have it is gone
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(due - loop.time())
            if not piece:
                writer.write_eof()  # the other direction may go on
                return
            writer.write(piece)
            await writer.drain()


@contextmanager
def far_away(upstream: int, seconds: float, log: Path) -> Iterator[int]:
    """The port of such a proxy, in a process of its own."""
    port = free_port(0)
    options = ["--port", str(port), "--upstream", str(upstream), "--milliseconds", str(1000 * seconds)]
    with running(python("-m", "benchmarks.latency", *options), log, ready_url=f"http://{LOOPBACK}:{port}"):
        yield port


async def _serve(port: int, upstream: int, seconds: float) -> None:
    server = await DelayingProxy(upstream, seconds).serve(port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--milliseconds", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.port, options.upstream, options.milliseconds / 1000))


if __name__ == "__main__":
    main()
