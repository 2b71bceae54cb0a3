"""Reads the body of an answer: whole, decoded, beginning like an image, and never past the byte limit."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import ClientResponse

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.decode import sniff

LARGE_BODY_BYTES = 2 << 20  # Instagram's are below 1 MB
LARGE_BODIES = 2  # at once: with 64 images in hand their bytes stay below 200 MB, whatever hosts send

Grow = Callable[[int], Awaitable[None]]
"""Waits until there is room for so many bytes of a body."""

_HEAD_BYTES = 32  # as many as `sniff` wants to see
_DETAIL_CHARACTERS = 80
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


@contextmanager
def standing_still(limit: asyncio.Timeout | None) -> Iterator[None]:
    """The time limit, if there is one, does not run while the block lasts."""
    ends_at = limit.when() if limit else None
    if limit is None or ends_at is None:
        yield
        return
    now = asyncio.get_running_loop().time
    began = now()
    limit.reschedule(None)
    try:
        yield
    finally:
        limit.reschedule(ends_at + now() - began)


class BodyRoom:
    """Room for the bytes of one image: a large body waits for a place, and keeps it until the image is done."""

    def __init__(self, places: asyncio.Semaphore | None = None) -> None:
        """`places` are shared by all images of a run; without them there is room for everything."""
        self._places = places
        self._has_place = False

    async def grow(self, size: int, *, limit: asyncio.Timeout | None = None) -> None:
        """Returns when there is room for so many bytes; the time limit stands still meanwhile."""
        if self._places is None or self._has_place or size <= LARGE_BODY_BYTES:
            return
        with standing_still(limit):
            await self._places.acquire()
        self._has_place = True

    def leave(self) -> None:
        """Gives the place up: the bytes are no longer needed."""
        if self._places and self._has_place:
            self._has_place = False
            self._places.release()


async def read_image(response: ClientResponse, max_bytes: int, grow: Grow) -> bytes:
    """Reads the body, and no further than it takes to see that it is no image or too large.

    Raises:
        ImageFailure: `image_too_large`, `truncated_download`, `not_an_image`, or `source_error` for an encoding that
            cannot be undone.
    """
    if (response.content_length or 0) > max_bytes:
        raise ImageFailure(FailureKind.IMAGE_TOO_LARGE, f"Content-Length {response.content_length}")
    await grow(response.content_length or 0)
    encoding = _ContentEncoding(response.headers.get("Content-Encoding", ""), max_bytes)
    image = bytearray()
    sniffed = False
    async for chunk in response.content.iter_any():
        image += encoding.decode(chunk)
        await grow(len(image))
        if not sniffed and len(image) >= _HEAD_BYTES:
            _require_image(image, response)
            sniffed = True
    encoding.require_complete()
    if not image:
        raise ImageFailure(FailureKind.TRUNCATED_DOWNLOAD, "empty body")
    if not sniffed:
        _require_image(image, response)
    return bytes(image)


def _require_image(start: bytearray, response: ClientResponse) -> None:
    head = bytes(start[:_HEAD_BYTES])
    if sniff(head) is None:
        content_type = response.headers.get("Content-Type", "no content type")
        raise ImageFailure(FailureKind.NOT_AN_IMAGE, printable(f"{content_type}: {head.decode('latin-1')}"))


class _ContentEncoding:
    """Undoes a response's Content-Encoding, up to `max_bytes` on the wire and as many decoded.

    gzip and deflate only, and only one of them: none was asked for, and each layer more multiplies a bomb by 1000.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._encoded_bytes = 0
        self._decoded_bytes = 0
        match name.strip().lower():
            case "" | "identity":
                self._inflater = None
            case "gzip" | "x-gzip" | "deflate":
                self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            case other:
                raise ImageFailure(FailureKind.SOURCE_ERROR, f"Content-Encoding {printable(other)}")

    def decode(self, chunk: bytes) -> bytes:
        """The next chunk, decoded."""
        self._encoded_bytes += len(chunk)
        data = self._inflate(chunk) if self._inflater else chunk
        self._decoded_bytes += len(data)
        if max(self._encoded_bytes, self._decoded_bytes) > self._max_bytes:
            raise ImageFailure(FailureKind.IMAGE_TOO_LARGE, f"more than {self._max_bytes} bytes")
        return data

    def require_complete(self) -> None:
        """Raises unless the encoded stream came to its end."""
        if self._inflater and not self._inflater.eof:
            raise ImageFailure(FailureKind.TRUNCATED_DOWNLOAD, "the compressed body ends early")

    def _inflate(self, chunk: bytes) -> bytes:
        assert self._inflater
        try:
            return self._inflater.decompress(chunk, self._max_bytes + 1 - self._decoded_bytes)
        except zlib.error as error:
            raise ImageFailure(FailureKind.SOURCE_ERROR, f"Content-Encoding: {error}") from error


def printable(text: str, *, at_most: int = _DETAIL_CHARACTERS) -> str:
    """The printable ASCII of what a host sent, short enough for a job's row."""
    return "".join(character for character in text if " " <= character <= "~")[:at_most]
