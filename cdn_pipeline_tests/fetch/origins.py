"""Real HTTP servers on loopback that behave well, badly or not at all."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image


def photograph() -> bytes:
    file = BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


PHOTOGRAPH = photograph()


def response(
    status: int = 200, body: bytes = PHOTOGRAPH, *, length: int | None = None, headers: dict[str, str] | None = None
) -> bytes:
    """A whole response; `length` is the Content-Length it claims."""
    fields = {"Content-Length": str(len(body) if length is None else length), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Origin:
    port: int = 0
    requests: list[bytes] = field(default_factory=list)  # heads, as they arrived
    connections: int = 0
    open: int = 0
    most_open: int = 0

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def targets(self) -> list[str]:
        return [request.split(b" ")[1].decode() for request in self.requests]


Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def always(*chunks: bytes) -> Answer:
    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    return answer


def by_path(answers: dict[str, bytes]) -> Answer:
    async def answer(target: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[target.partition("?")[0]])

    return answer


@asynccontextmanager
async def origin(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    """One answer per connection, which the server then closes."""
    log = Origin()
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        handlers.add(task)
        log.connections += 1
        log.open += 1
        log.most_open = max(log.most_open, log.open)
        try:
            log.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(log.targets[-1], writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            log.open -= 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    log.port = server.sockets[0].getsockname()[1]
    try:
        yield log
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
