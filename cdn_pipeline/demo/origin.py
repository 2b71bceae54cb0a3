"""The demo's origin: an HTTP server that gives out pictures as Instagram's CDN does, by its own clock.

In a thread: `with running_origin(folder) as origin: ...`. As a process: `python -m cdn_pipeline.demo.origin --port 8100
--state-dir DIR --secret S`, controlled over HTTP on the same port (loopback only):

    GET    /_admin/clock        {"now": …, "offset_seconds": …}
    POST   /_admin/clock        {"advance_seconds": 432000}
    GET    /_admin/requests     {"total": …, "outcomes": {…}, "paths": {"/v/…_n.jpg": {"ok": 1}}}
    DELETE /_admin/requests     counts from zero again
    POST   /_admin/misbehave    {"path": "/v/…_n.jpg", "fault": "truncated", "attempts": 1}

Clock, counts and faults live in memory and begin anew with each start; made pictures stay in the folder.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from cdn_pipeline.demo import answers
from cdn_pipeline.demo.faults import DEFAULT_RATES, NO_FAULTS, Fault, Misbehaviour
from cdn_pipeline.demo.pictures import Picture, PictureCache
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.demo.signing import Signer, check, expiry_of

_log = logging.getLogger(__name__)


class Requests:
    """Counts of answered requests by path of the picture and outcome.

    Outcomes are `ok`, `not_modified`, `not_found` (no picture's path), `bad_request` (neither GET nor HEAD), the names
    of `Rejection` in lower case, and the values of `Fault`; a deleted picture is `gone`.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def count(self, path: str, outcome: str) -> None:
        """Counts one request."""
        self._counts[path, outcome] += 1

    def reset(self) -> None:
        """Counts from zero again."""
        self._counts.clear()

    @property
    def total(self) -> int:
        """All requests for pictures."""
        return self._counts.total()

    def by_outcome(self) -> dict[str, int]:
        """Requests by outcome."""
        outcomes: Counter[str] = Counter()
        for (_, outcome), number in self._counts.copy().items():
            outcomes[outcome] += number
        return dict(outcomes)

    def by_path(self) -> dict[str, dict[str, int]]:
        """Requests by outcome for each path."""
        paths: dict[str, dict[str, int]] = {}
        for (path, outcome), number in self._counts.copy().items():
            paths.setdefault(path, {})[outcome] = number
        return paths


class Origin:
    """The server's state and handlers, and the controls of a test that runs it in a thread.

    Args:
        cache: where made pictures are kept.
        secret: what URLs are signed with.
        misbehaviour: which requests go wrong; the default rates if None.
        slow_seconds: how late the body of a `slow` answer comes.
        etag: whether to send ETags, which Instagram does not.
    """

    def __init__(
        self,
        cache: PictureCache,
        secret: str,
        *,
        misbehaviour: Misbehaviour | None = None,
        slow_seconds: float = 3.0,
        etag: bool = False,
    ) -> None:
        self.base_url = ""  # known once it listens
        self.secret = secret
        self.misbehaviour = misbehaviour or Misbehaviour()
        self.requests = Requests()
        self._cache = cache
        self._slow_seconds = slow_seconds
        self._etag = etag
        self._clock_offset = timedelta()

    @property
    def signer(self) -> Signer:
        """Signs URLs that this origin accepts."""
        return Signer(self.base_url, self.secret)

    def now(self) -> datetime:
        """The origin's own time, UTC."""
        return datetime.now(UTC) + self._clock_offset

    def advance_clock(self, by: timedelta) -> None:
        """Moves the origin's clock, so that URLs expire."""
        self._clock_offset += by

    def delete_picture(self, path: str) -> None:
        """Answers 404 for this picture from now on, whatever its URL."""
        self.misbehaviour.order(path, Fault.GONE)

    def application(self) -> web.Application:
        """The server as an aiohttp application."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/_admin/clock", self._get_clock),
                web.post("/_admin/clock", self._post_clock),
                web.get("/_admin/requests", self._get_requests),
                web.delete("/_admin/requests", self._delete_requests),
                web.post("/_admin/misbehave", self._post_misbehave),
                web.get("/{path:.*}", self._get_picture),
                web.route("*", "/{path:.*}", self._refuse_method),
            ]
        )
        return application

    async def _get_picture(self, request: web.Request) -> web.StreamResponse:
        rejection = check(request.path, request.query, self.secret, self.now())
        if rejection is not None:
            return self._answer(request, rejection.name.lower(), answers.text(HTTPStatus.FORBIDDEN, rejection))
        picture = Picture.at(request.path)
        expires_at = expiry_of(str(request.rel_url))
        if picture is None or expires_at is None:
            return self._answer(request, "not_found", answers.text(HTTPStatus.NOT_FOUND, "Not Found"))
        fault = self.misbehaviour.next_fault(picture.path, expires_at)
        match fault:
            case None | Fault.SLOW | Fault.TRUNCATED:
                return await self._send_picture(request, picture, fault)
            case _:
                return self._answer(request, fault, answers.FAULTY_ANSWERS[fault]())

    async def _send_picture(self, request: web.Request, picture: Picture, fault: Fault | None) -> web.StreamResponse:
        stp = request.query.get("stp", "")
        body = self._cache.stored(picture, stp)
        if body is None:
            body = await asyncio.to_thread(self._cache.make, picture, stp)
        headers = answers.picture_headers(picture, body, etag=self._etag)
        if fault is None and answers.unchanged(request, headers):
            return self._answer(request, "not_modified", web.Response(status=304, headers=headers))
        if fault is None:
            return self._answer(request, "ok", web.Response(body=body, headers=headers))
        self.requests.count(request.path, fault)
        return await self._send_badly(request, body, headers, fault)

    async def _send_badly(
        self, request: web.Request, body: bytes, headers: Mapping[str, str], fault: Fault
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        if fault is Fault.SLOW:
            await asyncio.sleep(self._slow_seconds)
            await response.write(body)
        else:
            await response.write(body[: len(body) // 2])
            if request.transport is not None:
                request.transport.close()
        return response

    async def _refuse_method(self, request: web.Request) -> web.Response:
        return self._answer(request, "bad_request", answers.html(HTTPStatus.BAD_REQUEST, "<html>Bad Request</html>"))

    def _answer(self, request: web.Request, outcome: str, response: web.Response) -> web.Response:
        self.requests.count(request.path, outcome)
        return response

    async def _get_clock(self, request: web.Request) -> web.Response:
        offset = self._clock_offset.total_seconds()
        return web.json_response({"now": self.now().isoformat(), "offset_seconds": offset})

    async def _post_clock(self, request: web.Request) -> web.Response:
        try:
            self.advance_clock(timedelta(seconds=(await request.json())["advance_seconds"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise web.HTTPBadRequest(text='wanted: {"advance_seconds": number}') from error
        return await self._get_clock(request)

    async def _get_requests(self, request: web.Request) -> web.Response:
        counts = self.requests
        return web.json_response({"total": counts.total, "outcomes": counts.by_outcome(), "paths": counts.by_path()})

    async def _delete_requests(self, request: web.Request) -> web.Response:
        self.requests.reset()
        return web.Response(status=HTTPStatus.NO_CONTENT)

    async def _post_misbehave(self, request: web.Request) -> web.Response:
        try:
            order = await request.json()
            self.misbehaviour.order(order["path"], Fault(order["fault"]), attempts=int(order.get("attempts", 1)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            faults = ", ".join(Fault)
            message = f'wanted: {{"path": "/v/…", "fault": one of {faults}, "attempts": number}}'
            raise web.HTTPBadRequest(text=message) from error
        return web.Response(status=HTTPStatus.NO_CONTENT)


@contextlib.contextmanager
def running_origin(
    folder: Path,
    *,
    secret: str = "demo",  # noqa: S107  (it guards pictures of a cat)
    port: int = 0,
    misbehaviour: Misbehaviour | None = None,
    slow_seconds: float = 3.0,
    etag: bool = False,
) -> Iterator[Origin]:
    """An origin in a thread of this process, on a free port unless one is given. `folder` keeps the made pictures."""
    origin = Origin(PictureCache(folder), secret, misbehaviour=misbehaviour, slow_seconds=slow_seconds, etag=etag)
    with in_thread(listening(origin.application(), port=port)) as origin.base_url:
        yield origin


async def _serve(origin: Origin, port: int) -> None:
    stopped = asyncio.Event()
    for stop in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(stop, stopped.set)
    async with listening(origin.application(), port=port) as origin.base_url:
        _log.info("demo origin ready at %s", origin.base_url)
        await stopped.wait()


def main() -> None:
    """Serves until SIGTERM or SIGINT; logs one line to standard error when ready."""
    parser = argparse.ArgumentParser(prog="python -m cdn_pipeline.demo.origin", description="The demo's origin.")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; a free one by default")
    parser.add_argument("--state-dir", type=Path, required=True, help="keeps the made pictures")
    parser.add_argument("--secret", required=True, help="what URLs are signed with")
    parser.add_argument("--no-faults", action="store_true", help="behave")
    parser.add_argument("--slow-seconds", type=float, default=3.0, help="how late the body of a slow answer comes")
    parser.add_argument("--etag", action="store_true", help="send ETags")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    origin = Origin(
        PictureCache(options.state_dir / "pictures"),
        options.secret,
        misbehaviour=Misbehaviour(NO_FAULTS if options.no_faults else DEFAULT_RATES),
        slow_seconds=options.slow_seconds,
        etag=options.etag,
    )
    asyncio.run(_serve(origin, options.port))


if __name__ == "__main__":
    main()
