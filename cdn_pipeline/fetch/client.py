"""Downloads one image over HTTP, or says as an `ImageFailure` why not.

On aiohttp itself, not on httpx with its aiohttp transport. Source URLs are signed and have to go out byte for byte:
httpx rewrites them (`%7E` to `~`, `%2b` to `%2B`, `/a/../b` to `/b`). And that transport reports every failed dial as a
connect timeout, so that a refused connection, an unknown host and a slow one would look the same.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self, overload
from urllib.parse import parse_qs, urljoin, urlsplit

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientResponseError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.addresses import AddressRefused, guarded_socket_factory
from cdn_pipeline.fetch.body import BodyRoom, Grow, printable, read_image
from cdn_pipeline.settings import Network

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_FORBIDDEN = frozenset({401, 403})
_ANSWER_BYTES = 256  # Instagram's longest answer to a bad signature has 22
_LIBRARY_CHARACTERS = 500  # aiohttp's own words: a host's name of up to 253, and what each of its addresses answered
_LONGEST_RETRY_AFTER = 86_400.0  # seconds, of the one image; the queue asks daily anyway

try:
    _VERSION = version("cdn-pipeline")
except PackageNotFoundError:  # run from a checkout that is not installed
    _VERSION = "0"

_HEADERS = {
    "User-Agent": f"cdn-pipeline/{_VERSION} (+image mirror)",
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # images do not shrink; what comes encoded all the same is decoded
}


@dataclass(frozen=True, slots=True)
class Download:
    """An image as downloaded: bytes that begin like an image and arrived whole.

    `etag`, `last_modified` and `content_type` are the headers as sent; `milliseconds` is from the first dial to the
    last byte, redirects included.
    """

    data: bytes
    status: int
    content_type: str | None
    etag: str | None
    last_modified: str | None
    final_url: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class NotModified:
    """The host says that its picture is still the one of the given validators; `milliseconds` as in `Download`."""

    milliseconds: int


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """When a download is given up; times in seconds."""

    connect_seconds: float = 5.0  # DNS, TCP and TLS together; one lost SYN is sent again after 1 s, a second after 3
    read_seconds: float = 10.0  # silence, before the answer or between two packets
    total_seconds: float = 30.0  # a slow drip never falls silent; leaves half of an image's 60 s to the other stages
    max_bytes: int = 32 * 1024 * 1024  # 300 times the usual 112 KB; 64 of them at once still fit into 2 GiB
    max_redirects: int = 3  # to https, to another host, to another path; more is a loop or a login


_DEFAULT_LIMITS = DownloadLimits()


class Downloader:
    """Downloads images over one bounded connection pool; an async context manager, one per run.

    `concurrency` bounds the downloads at once; the others wait, and their time does not run yet. Public addresses are
    dialled on ports 80 and 443, `allowed_networks` on any port, nothing else. Proxies of the environment are not used
    and cookies are not kept.
    """

    def __init__(
        self,
        *,
        allowed_networks: tuple[Network, ...] = (),
        limits: DownloadLimits = _DEFAULT_LIMITS,
        concurrency: int = 64,
    ) -> None:
        self._allowed_networks = allowed_networks
        self._limits = limits
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=TCPConnector(
                limit=self._concurrency,
                socket_factory=guarded_socket_factory(self._allowed_networks),
                ssl=ssl.create_default_context(),  # follows SSL_CERT_FILE, which aiohttp's reads at import only
            ),
            timeout=ClientTimeout(
                total=None,  # ours also covers redirects
                connect=self._limits.connect_seconds,
                sock_read=self._limits.read_seconds,
            ),
            headers=_HEADERS,
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,  # ours stops at the byte limit
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @overload
    async def download(self, url: str, *, room: BodyRoom | None = None) -> Download: ...

    @overload
    async def download(
        self, url: str, *, room: BodyRoom | None = None, etag: str | None = None, last_modified: str | None = None
    ) -> Download | NotModified: ...

    async def download(
        self, url: str, *, room: BodyRoom | None = None, etag: str | None = None, last_modified: str | None = None
    ) -> Download | NotModified:
        """Downloads the image at `url`, which is sent byte for byte as given.

        With the validators of an earlier download (`etag`, `last_modified`) the host is asked to send the image only if
        it is another one by now. They are not for other hosts that the URL redirects to.

        A large body waits for its place in `room`, and the time limit with it.

        Raises:
            ImageFailure: whatever went wrong; its kind says what, its detail never carries the URL.
        """
        async with self._places:
            try:
                async with asyncio.timeout(self._limits.total_seconds) as limit:
                    grow = partial((room or BodyRoom()).grow, limit=limit)
                    return await self._follow(url, _validators(etag, last_modified), grow)
            except TimeoutError as error:
                detail = f"not complete after {self._limits.total_seconds:g} s"
                raise ImageFailure(FailureKind.DOWNLOAD_TIMEOUT, detail) from error

    async def _follow(self, url: str, validators: Mapping[str, str], grow: Grow) -> Download | NotModified:
        started = time.monotonic()
        for _ in range(1 + self._limits.max_redirects):
            async with self._answer_to(url, validators) as response:
                if response.status in _REDIRECTS:
                    before, url = url, _redirected(url, response)
                    if urlsplit(url).netloc != urlsplit(before).netloc:
                        validators = {}
                    continue
                if response.status == 304 and validators:
                    return NotModified(_milliseconds_since(started))
                await _require_ok(url, response)
                return Download(
                    data=await read_image(response, self._limits.max_bytes, grow),
                    status=response.status,
                    content_type=response.headers.get("Content-Type"),
                    etag=response.headers.get("ETag"),
                    last_modified=response.headers.get("Last-Modified"),
                    final_url=url,
                    milliseconds=_milliseconds_since(started),
                )
        raise ImageFailure(FailureKind.TOO_MANY_REDIRECTS, f"more than {self._limits.max_redirects}")

    @asynccontextmanager
    async def _answer_to(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[ClientResponse]:
        target = _dialable(url)
        try:
            response = await self._session.get(target, headers=headers, allow_redirects=False)
        except (ClientError, OSError, ValueError) as error:
            raise _failure_before_answer(target, error) from error
        async with response:
            try:
                yield response
            except TimeoutError as error:
                detail = f"silent for {self._limits.read_seconds:g} s in the middle of the body"
                raise ImageFailure(FailureKind.DOWNLOAD_TIMEOUT, detail) from error
            except (ClientError, OSError) as error:
                raise ImageFailure(FailureKind.TRUNCATED_DOWNLOAD, printable(str(error))) from error


def _validators(etag: str | None, last_modified: str | None) -> Mapping[str, str]:
    """The headers that ask for the image only if it is another one."""
    headers = {"If-None-Match": etag, "If-Modified-Since": last_modified}
    return {name: value for name, value in headers.items() if value}


def _milliseconds_since(started: float) -> int:
    return round(1000 * (time.monotonic() - started))


def _dialable(url: str) -> URL:
    """The URL as given, if it is one that a request line can carry."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ImageFailure(FailureKind.BLOCKED_ADDRESS, "malformed URL: characters that must be percent-encoded")
    try:
        target = URL(url, encoded=True)
        host, _ = target.raw_host, target.port
    except ValueError as error:
        raise ImageFailure(FailureKind.BLOCKED_ADDRESS, f"malformed URL: {printable(str(error))}") from error
    if target.scheme not in ("http", "https") or not host:
        raise ImageFailure(FailureKind.BLOCKED_ADDRESS, f"not http or https with a host: {target.scheme}")
    return target


def _failure_before_answer(target: URL, error: Exception) -> ImageFailure:
    host = target.raw_host
    match error:
        case ClientConnectorError(os_error=AddressRefused(address=address, port=port)):
            return ImageFailure(FailureKind.BLOCKED_ADDRESS, f"{host} leads to {address} port {port}")
        case ClientConnectorError():  # also a ValueError where a certificate is wrong
            return ImageFailure(FailureKind.CONNECTION_FAILED, printable(str(error), at_most=_LIBRARY_CHARACTERS))
        case TimeoutError():  # its message would carry the URL
            return ImageFailure(FailureKind.DOWNLOAD_TIMEOUT, f"{host} did not answer in time")
        case ClientResponseError():
            return ImageFailure(FailureKind.SOURCE_ERROR, f"{host} does not speak HTTP: {printable(error.message)}")
        case ValueError():  # `http://2130706433/`, or a label of more than 63 characters
            return ImageFailure(FailureKind.BLOCKED_ADDRESS, f"malformed host: {host}")
        case _:
            return ImageFailure(FailureKind.CONNECTION_FAILED, f"{host}: {printable(str(error))}")


def _redirected(url: str, response: ClientResponse) -> str:
    location = response.headers.get("Location")
    if not location:
        raise ImageFailure(FailureKind.SOURCE_ERROR, f"HTTP {response.status} without a Location")
    try:
        target = urljoin(url, location)
        downgrade = urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http"
    except ValueError as error:
        raise ImageFailure(FailureKind.SOURCE_ERROR, f"HTTP {response.status} to a malformed URL") from error
    if downgrade:
        host = printable(urlsplit(target).hostname or "nowhere")
        raise ImageFailure(FailureKind.BLOCKED_ADDRESS, f"redirect from https to http, to {host}")
    return target


async def _require_ok(url: str, response: ClientResponse) -> None:
    status = response.status
    if status == 200:
        return
    if status in _FORBIDDEN:
        answer = (await _read_head(response)).decode("latin-1")
        raise ImageFailure(_forbidden(url, answer), f"HTTP {status}: {printable(answer)}")
    if status in _GONE:
        raise ImageFailure(FailureKind.SOURCE_URL_404, f"HTTP {status}")
    kind = FailureKind.RATE_LIMITED if status == 429 else FailureKind.SOURCE_ERROR
    wait = _seconds_until(response.headers.get("Retry-After", ""))
    raise ImageFailure(kind, f"HTTP {status}", retry_after_seconds=wait, status=status)


async def _read_head(response: ClientResponse) -> bytes:
    try:
        return await response.content.readexactly(_ANSWER_BYTES)
    except asyncio.IncompleteReadError as shorter:
        return shorter.partial


def _forbidden(url: str, answer: str) -> FailureKind:
    """What Instagram's CDN means by a 403.

    It calls some expired URLs badly signed ("Bad URL hash", in one set of 12,000): there the URL's own expiry decides.
    """
    if "URL signature expired" in answer:
        return FailureKind.SOURCE_URL_EXPIRED
    if "URL signature mismatch" in answer:
        return FailureKind.SIGNATURE_MISMATCH
    if "Bad URL timestamp" in answer or "Bad URL hash" in answer:
        return FailureKind.SOURCE_URL_EXPIRED if _has_expired(url) else FailureKind.SIGNATURE_MISMATCH
    return FailureKind.SOURCE_FORBIDDEN


def _has_expired(url: str) -> bool:
    """Whether the URL says so itself: `oe` is its expiry, Unix seconds in hexadecimal."""
    try:
        return int(parse_qs(urlsplit(url).query)["oe"][0], 16) <= time.time()
    except (KeyError, ValueError):
        return False


def _seconds_until(retry_after: str) -> float | None:
    """`Retry-After` in seconds from now, whether it was sent as seconds or as a date; None if it is neither."""
    try:
        if retry_after.isdecimal():
            seconds: float = int(retry_after)
        else:
            date = parsedate_to_datetime(retry_after)
            seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):  # no date, or numbers of thousands of digits, or a year of more than C has
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
