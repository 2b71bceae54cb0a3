"""The grammar of Instagram's signed URLs: identity, rank and expiry, read from the URL alone.

    https://HOST/v/t51.2885-15/FILE_n.jpg?stp=TRANSFORM&efg=TAGS&ig_cache_key=KEY&_nc_ht=…&oh=SIGNATURE&oe=EXPIRY
    https://HOST/v/t51.2885-15/e35/p1080x1080/FILE_n.jpg?…                    (2019-2021: the transform in the path)
    https://HOST/vp/SIGNATURE/EXPIRY/t51.2885-15/e35/s640x640/FILE_n.jpg      (until 2019)

The host, the signature and every `_nc_*` depend on who asked and when, so the grammar counts on any host. `stp` and old
paths name steps: `s640x640` fits the picture into a box, `p640x640` lets its shorter side fill one, `c0.180.1440.1440a`
crops first. No step ever enlarges, and a picture smaller than its box comes without one. `efg` may tell the original
size. The suffix of the file tells nothing: a `.heic` with `stp=dst-jpg` is a JPEG.
"""

import base64
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

MAX_URL_LENGTH = 8192  # characters; the longest real ones have about 600

UNCROPPED_RANK = 100_000  # above every side in pixels, which have five digits at most

# What an original counts whose size the URL does not tell: as much as the largest box seen (1080 on Instagram, 2048 on
# Facebook), because a URL without a box is never worse than one of the same picture with a box.
UNKNOWN_SIDE = 2048

_SIDE = "([1-9][0-9]{0,4})"
_BOX = re.compile(f"[sp]{_SIDE}x{_SIDE}")
_CROP = re.compile("c-?[0-9].*")
_CROP_AREA = re.compile(rf"c-?[0-9]+\.-?[0-9]+\.{_SIDE}\.{_SIDE}[a-z]?")  # left, top, width, height
_TAG_SIZE = re.compile(f"{_SIDE}(?:x{_SIDE})?")  # 2268x4032, or one number: profile_pic.django.855.c1

_PICTURE_PATH = re.compile(
    r"/(?:v|vp/[^/]+/(?P<expiry>[0-9A-Fa-f]+))/t[0-9]+\.[0-9]+-[0-9]+"
    r"(?P<steps>(?:/[^/]+)*)/(?P<stem>[A-Za-z0-9_-]{1,120})\.[^/]+"
)
# Base64 of ASCII digits consists of letters and digits alone, so the URL-safe alphabet makes no difference.
_CACHE_KEY = re.compile(r"([A-Za-z0-9]+)=*(?:\.[0-9]+)?(?:-ccb[0-9]+-[0-9]+)?")
_MEDIA_PK = re.compile(rb"[0-9]{1,64}")  # 19 digits for most media, 36 for some

# Eight digits at least, so that another site's `oe` is not taken for an expiry.
_EXPIRY = re.compile("[0-9A-Fa-f]{8,16}")
_LAST_EXPIRY = int(datetime(9999, 12, 30, tzinfo=UTC).timestamp())  # a day later it is the year 10000 further east

# The look-behind keeps a long run of backslashes from taking quadratic time.
_UNICODE_ESCAPE = re.compile(r"(?<!\\)\\+u([0-9A-Fa-f]{4})")
_SLASH_ESCAPE = re.compile(r"(?<!\\)\\+/")
_AMPERSAND_ENTITY = re.compile("&(?:amp;|#38;|#x26;)+")
_WRAPPING = string.whitespace + "\"'\\"

_PARAMETERS_READ = frozenset({"stp", "efg", "ig_cache_key", "oe"})  # of ten or so

_PLAIN_MEDIA_ID = re.compile("[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class SourceUrl:
    """What one source URL says about its picture."""

    url: str
    """Unescaped and otherwise untouched, because the signature covers it."""

    identity: str
    """`pk:` and Instagram's media pk, else `file:` and the file name up to its first dot, else `url:` and the SHA-256
    of the whole URL in hex; at most 128 characters."""

    rank: int
    """How good a picture is delivered, comparable within one identity: higher is better.

    The longer side in pixels, plus `UNCROPPED_RANK` when nothing is cut off: 100640 is whole and 640 pixels long, 1080
    is cropped and 1080 pixels long. The side is the smallest of box, crop and original as far as the URL tells them. A
    `p` box counts as its own side although it bounds the shorter one, so that a URL with `efg` ranks like one without.
    """

    expires_at: datetime | None
    """When the signature ends, in UTC; None when the URL does not say."""


def parse(raw: str) -> SourceUrl:
    """Read a source URL as a row or a payload carries it, with or without escapes.

    Raises ValueError for what can never be requested: longer than `MAX_URL_LENGTH`, not http(s), without host, with
    credentials, or with blanks, backslashes or control characters inside. Anything unreadable in a parameter only
    leaves its meaning unknown.
    """
    if len(raw) > MAX_URL_LENGTH:
        raise ValueError(f"URL longer than {MAX_URL_LENGTH} characters")
    url = unescape(raw)
    parts = _split(url)
    parameters = _parameters(parts.query)
    path = _PICTURE_PATH.fullmatch(parts.path)
    return SourceUrl(
        url=url,
        identity=_identity(url, path, parameters.get("ig_cache_key", "")),
        rank=_rank(parameters.get("stp", ""), path["steps"] if path else "", parameters.get("efg", "")),
        expires_at=_expires_at(path, parameters.get("oe", "")),
    )


def unescape(raw: str) -> str:
    r"""Undo escapes of JSON (`\u0026`, `\/`) and HTML (`&amp;`), doubled ones too, and strip blanks and quotes."""
    text = raw
    if "\\" in text:  # hardly any URL has escapes, and looking for each of them took a third of parsing
        text = _UNICODE_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
        text = _SLASH_ESCAPE.sub("/", text)
    if ";" in text:
        text = _AMPERSAND_ENTITY.sub("&", text)
    return text.strip(_WRAPPING)


def media_key(media_id: str) -> str:
    """Return what keys and rows carry for `media_id`: itself if `[A-Za-z0-9_-]{1,100}`, else `x-` and a hash of it."""
    if _PLAIN_MEDIA_ID.fullmatch(media_id):
        return media_id
    return "x-" + hashlib.sha256(media_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _split(url: str) -> SplitResult:
    if not url.isprintable() or " " in url or "\\" in url:  # urlsplit would drop some of these in silence
        raise ValueError("URL with blanks, backslashes or control characters inside")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("URL is not http(s)")
    if "@" in parts.netloc:
        raise ValueError("URL with credentials")
    if not parts.hostname or parts.port == 0:
        raise ValueError("URL without host, or with port 0")
    return parts


def _parameters(query: str) -> Mapping[str, str]:
    """Decode the first value that is not empty of each parameter we read; a `+` stays one, as base64 needs it."""
    parameters: dict[str, str] = {}
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if value and name in _PARAMETERS_READ and name not in parameters:
            parameters[name] = unquote(value)
    return parameters


def _identity(url: str, path: re.Match[str] | None, cache_key: str) -> str:
    if media_pk := _media_pk(cache_key):
        return f"pk:{media_pk}"
    if path:
        return f"file:{path['stem']}"
    return f"url:{hashlib.sha256(url.encode()).hexdigest()}"


def _media_pk(cache_key: str) -> str | None:
    """Take the digits out of an `ig_cache_key`; the key of an avatar decodes to something else."""
    key = _CACHE_KEY.fullmatch(cache_key)
    if not key:
        return None
    try:
        payload = _decode_base64(key[1])
    except ValueError:
        return None
    return payload.decode("ascii") if _MEDIA_PK.fullmatch(payload) else None


@lru_cache(maxsize=512)  # the pictures of one night share a few dozen
def _rank(stp: str, path_steps: str, efg: str) -> int:
    original_side = _original_side(efg)
    sides = [original_side] if original_side else []
    whole = True
    for step in (*stp.split("_"), *path_steps.split("/")):
        if area := _BOX.fullmatch(step) or _CROP_AREA.fullmatch(step):
            sides.append(max(int(area[1]), int(area[2])))
        if _CROP.fullmatch(step):
            whole = False
    return min(sides, default=UNKNOWN_SIDE) + (UNCROPPED_RANK if whole else 0)


def _original_side(efg: str) -> int | None:
    """Read the longer side of the original from `efg`, base64 of `{"vencode_tag": "xpids.2268x4032.sdr.C3"}`."""
    try:
        tags = json.loads(_decode_base64(efg))
    except (ValueError, RecursionError):
        return None
    if not isinstance(tags, dict):
        return None
    for tag in (tags.get("vencode_tag"), tags.get("efg_tag")):
        for word in tag.split(".") if isinstance(tag, str) else ():
            if size := _TAG_SIZE.fullmatch(word):
                return max(int(side) for side in size.groups() if side)
    return None


def _expires_at(path: re.Match[str] | None, oe: str) -> datetime | None:
    """Read Unix seconds in hex, from `oe` or else from a `/vp/` path."""
    for text in (oe, path and path["expiry"]):
        if text and _EXPIRY.fullmatch(text) and int(text, 16) <= _LAST_EXPIRY:
            return datetime.fromtimestamp(int(text, 16), UTC)
    return None


def _decode_base64(text: str) -> bytes:
    """Decode either alphabet, padded or not; raises ValueError for anything else."""
    bare = text.rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)


def rank_in_words(rank: int, number: Callable[[int], str] = str) -> str:
    """Whether a URL of this rank gives the whole picture, and how large; `number` writes the pixels."""
    whole, side = divmod(rank, UNCROPPED_RANK)
    size = "in its original size" if side == UNKNOWN_SIDE else f"{number(side)} px"
    return f"{'whole' if whole else 'cropped'}, {size}"
