"""An HTTP server in front of another: it passes requests on, until it is told to misbehave."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import ClientSession, DummyCookieJar, web
from yarl import URL

from benchmarks.chaos.faults import Fault, behaves
from cdn_pipeline.demo.serving import in_thread, listening

_LARGEST_BODY = 64 << 20
# They tell of one connection, not of the message; the client in between writes its own.
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}


class Front:
    """`fault` may be changed at any time, from any thread; `answered` counts requests, `spoilt` those it spoilt."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.url = ""  # known once it listens
        self.fault: Fault = behaves
        self.answered = 0
        self.spoilt = 0
        self._client: ClientSession | None = None

    def rest(self) -> None:
        """Behaves again, and counts from zero."""
        self.fault, self.answered, self.spoilt = behaves, 0, 0

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.answered += 1
        answer = await self.fault(request)
        if answer is None:
            return await self._pass_on(request)
        self.spoilt += 1
        return answer

    async def _pass_on(self, request: web.Request) -> web.Response:
        assert self._client is not None
        target = URL(self.upstream + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_CONNECTION}
        body = await request.read()
        async with self._client.request(
            request.method, target, data=body, headers=headers, allow_redirects=False
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_CONNECTION}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listens on a free port of loopback."""
        application = web.Application(client_max_size=_LARGEST_BODY)
        application.router.add_route("*", "/{path:.*}", self._answer)
        async with (
            ClientSession(auto_decompress=False, cookie_jar=DummyCookieJar()) as self._client,
            listening(application) as self.url,
        ):
            yield


@contextmanager
def running_front(upstream: str) -> Iterator[Front]:
    """A front of the server at `upstream`, in a thread of this process."""
    front = Front(upstream)
    with in_thread(front.listening()):
        yield front
