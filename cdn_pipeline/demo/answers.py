"""What Instagram's CDN answers: status, headers and bodies as captured, and the wrong answers of each fault."""

import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import web

from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.demo.pictures import Picture

_RETRY_AFTER_SECONDS = 2
_LOGIN_PAGE = (
    "<!DOCTYPE html><html><head><title>Login • Instagram</title></head><body>Log in to continue.</body></html>"
)
_FIVE_YEARS = 5 * 365 * 86_400  # seconds

# It sends no ETag.
_PICTURE_HEADERS = {
    "Server": "proxygen-bolt",
    "Cache-Control": "max-age=1209600, no-transform",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Timing-Allow-Origin": "*",
}


def text(status: HTTPStatus, words: str, *, retry_after: int | None = None) -> web.Response:
    """A refusal in plain text."""
    headers = {"Server": "proxygen-bolt", "Content-Type": "text/plain"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return web.Response(status=status, body=words.encode(), headers=headers)


def html(status: HTTPStatus, page: str) -> web.Response:
    """A page in place of a picture."""
    headers = {"Server": "proxygen-bolt", "Content-Type": "text/html; charset=utf-8"}
    return web.Response(status=status, body=page.encode(), headers=headers)


FAULTY_ANSWERS: Mapping[Fault, Callable[[], web.Response]] = MappingProxyType(
    {
        Fault.RATE_LIMITED: lambda: text(
            HTTPStatus.TOO_MANY_REQUESTS, "Too Many Requests", retry_after=_RETRY_AFTER_SECONDS
        ),
        Fault.HTML_PAGE: lambda: html(HTTPStatus.OK, _LOGIN_PAGE),
        Fault.SERVER_ERROR: lambda: text(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal Server Error"),
        Fault.STALE_URL: lambda: text(HTTPStatus.NOT_FOUND, "Not Found"),
        Fault.GONE: lambda: text(HTTPStatus.NOT_FOUND, "Not Found"),
    }
)
"""The answer to each fault that takes the place of the picture. SLOW and TRUNCATED concern how the picture is sent."""


def picture_headers(picture: Picture, body: bytes, *, etag: bool) -> dict[str, str]:
    """The headers of a picture that is served as `body`."""
    uploaded_at = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=picture.seed % _FIVE_YEARS)
    headers = _PICTURE_HEADERS | {
        "Content-Type": "image/webp" if body.startswith(b"RIFF") else "image/jpeg",
        "Last-Modified": format_datetime(uploaded_at, usegmt=True),
        "Content-Digest": f"adler32={zlib.adler32(body)}",
    }
    return headers | {"ETag": f'"{zlib.crc32(body):08x}-{len(body):x}"'} if etag else headers


def unchanged(request: web.Request, headers: Mapping[str, str]) -> bool:
    """Whether a conditional request asks for nothing newer than what `headers` describe."""
    if request.if_none_match is not None:
        return headers.get("ETag") in [f'"{tag.value}"' for tag in request.if_none_match]
    since = request.if_modified_since
    return since is not None and parsedate_to_datetime(headers["Last-Modified"]) <= since
