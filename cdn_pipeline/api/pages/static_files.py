"""The stylesheet, the script and the icon of the pages, under URLs that name their content."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response

router = APIRouter(include_in_schema=False)

_IMMUTABLE = "public, max-age=31536000, immutable"
_TYPES = {
    "operations.css": "text/css; charset=utf-8",
    "operations.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file that pages link to; `digest` is of its bytes."""

    name: str
    content: bytes
    digest: str

    @property
    def url(self) -> str:
        """Where it is served, for ever."""
        return f"/static/{self.digest}/{self.name}"


@cache
def static_file(name: str) -> StaticFile:
    """The file of this name in `static/`."""
    content = files(__package__).joinpath("static", name).read_bytes()
    return StaticFile(name, content, hashlib.sha256(content).hexdigest()[:16])


@router.get("/static/{digest}/{name}")
def get_static_file(digest: str, name: str) -> Response:
    """The file, if its content is still that: another version of the code has another."""
    if name not in _TYPES or static_file(name).digest != digest:
        raise HTTPException(404, "There is no such file, or not any more: reload the page.")
    headers = {"Cache-Control": _IMMUTABLE, "X-Content-Type-Options": "nosniff"}
    return Response(static_file(name).content, media_type=_TYPES[name], headers=headers)
