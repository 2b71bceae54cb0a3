"""Delivers renditions from a folder store as the CDN would: for laptops and tests, where no CDN stands in front."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Message, Receive, Scope, Send

from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import cache_control

CONTENT_TYPES = {".webp": "image/webp", ".avif": "image/avif", ".jpg": "image/jpeg"}

# A page elsewhere may show the picture, draw it on a canvas and time it. On Cloudflare a response header rule does it.
_CROSS_ORIGIN = {
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Timing-Allow-Origin": "*",
    "X-Content-Type-Options": "nosniff",
}

# To scripts that send headers of their own, such as a range or an ETag.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "86400",
}

# Short, because what is missing now may be published in a minute.
_MISSING_CACHE_CONTROL = "public, max-age=60"


class Renditions(StaticFiles):
    """The files of a folder store under `/th`: immutable, with an ETag from the content's hash, ranges and 304."""

    def __init__(self, directory: Path, cache_control: str) -> None:
        super().__init__(directory=directory)
        self._cache_control = cache_control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets pages elsewhere use every answer: a 304 and a 416 are made without the file's own headers."""

        async def send_to_all(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_CROSS_ORIGIN)
            await send(message)

        await super().__call__(scope, receive, send_to_all)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or a 404 that caches forget soon."""
        if scope["method"] == "OPTIONS":
            return Response(status_code=204, headers=_PREFLIGHT)
        if Path(path).suffix not in CONTENT_TYPES:
            raise _missing()
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code == 404:
                raise _missing() from error
            if error.status_code == 405:
                raise HTTPException(405, error.detail, headers={"Allow": "GET, HEAD, OPTIONS"}) from error
            raise

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """The file with the headers that R2 keeps as metadata; here they follow from the key, which names the hash."""
        file = Path(full_path)
        headers = {"ETag": f'"{file.stem}"', "Cache-Control": self._cache_control}
        media_type = CONTENT_TYPES[file.suffix]
        response = FileResponse(
            full_path, status_code=status_code, headers=headers, media_type=media_type, stat_result=stat_result
        )
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


def _missing() -> HTTPException:
    return HTTPException(404, "no such rendition", headers={"Cache-Control": _MISSING_CACHE_CONTROL, **_CROSS_ORIGIN})


def rendition_files(settings: Settings) -> Renditions | None:
    """The files to deliver; None when the renditions are not in a folder but behind a CDN."""
    parts = urlsplit(settings.objects_url)
    if parts.scheme != "file":
        return None
    folder = Path(url2pathname(parts.path)) / "th"
    folder.mkdir(parents=True, exist_ok=True)
    return Renditions(folder, cache_control(settings.browser_cache_days))
