"""URLs in Instagram's grammar, signed by the demo's origin: every parameter but `oh` is bound into the signature."""

import base64
import hashlib
import hmac
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import parse_qsl, urlencode, urlsplit

from cdn_pipeline.demo.pictures import AVATARS_FOLDER, Picture

# What `_nc_ht` claims. On Instagram it is the URL's own host; the demo's URLs all lead to 127.0.0.1.
HOST_CLAIMS = (
    "scontent.cdninstagram.com",
    "scontent-ber1-1.cdninstagram.com",
    "scontent-fra5-2.cdninstagram.com",
    "scontent-iad3-1.cdninstagram.com",
    "scontent-iad3-2.cdninstagram.com",
    "scontent-lhr6-1.cdninstagram.com",
    "instagram.fhel5-1.fna.fbcdn.net",
)

_OH = re.compile(r"00_Af[A-Za-z0-9_-]{43}")


class Rejection(StrEnum):
    """Why the origin refuses a URL; the value is the body of the 403."""

    EXPIRED = "URL signature expired"
    MISMATCH = "URL signature mismatch"
    BAD_TIMESTAMP = "Bad URL timestamp"
    BAD_HASH = "Bad URL hash"


def sign(path: str, query: Mapping[str, str], secret: str) -> str:
    """The `oh` of a URL: it binds the path and every decoded parameter, `oe` and `_nc_ht` among them, but not `oh`."""
    bound = sorted((name, value) for name, value in query.items() if name != "oh")
    digest = hmac.digest(secret.encode(), f"{path}?{urlencode(bound)}".encode(), hashlib.sha256)
    return "00_Af" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def check(path: str, query: Mapping[str, str], secret: str, now: datetime) -> Rejection | None:
    """Why a request is refused at `now`, or None if the URL is good. A forged URL is never called expired."""
    expires_at = _expiry(query)
    if expires_at is None:
        return Rejection.BAD_TIMESTAMP
    if not _OH.fullmatch(query.get("oh", "")):
        return Rejection.BAD_HASH
    if not hmac.compare_digest(query["oh"], sign(path, query, secret)):
        return Rejection.MISMATCH
    return Rejection.EXPIRED if now >= expires_at else None


@dataclass(frozen=True, slots=True)
class Signer:
    """Makes the source URLs of the origin at `base_url` (`http://127.0.0.1:PORT`, no trailing slash)."""

    base_url: str
    secret: str

    def url(
        self, picture: Picture, stp: str, expires_at: datetime, chance: random.Random, *, media_pk: str | None = None
    ) -> str:
        """A source URL that lives until `expires_at` (whole seconds).

        `chance` draws the parameters that mean nothing to us. A `media_pk` adds an `ig_cache_key`, which on Instagram
        only some URLs carry.
        """
        width, height = picture.size
        avatar = picture.folder == AVATARS_FOLDER
        tag = f"profile_pic.django.{width}.c2" if avatar else f"image_urlgen.{width}x{height}.sdr"
        query = {
            "stp": stp,
            "efg": _base64(json.dumps({"vencode_tag": tag}, separators=(",", ":"))).rstrip("="),
            "_nc_ht": "",  # with _nc_ohc drawn at signing, kept here for the order of Instagram's parameters
            "_nc_cat": str(chance.randint(100, 111)),
            "_nc_ohc": "",
            "edm": _token(chance, 9) + "BAAAA",
            "ccb": "7-5",
        }
        if media_pk is not None:
            query["ig_cache_key"] = f"{_base64(media_pk)}.2-ccb7-5"
        return self._signed(picture.path, query, expires_at, chance)

    def sign_again(self, url: str, expires_at: datetime) -> str:
        """The URL as Instagram would give it out later; the same arguments give the same URL.

        Picture, transform and cache key stay; host claim, `_nc_ohc`, expiry and signature are others. The new expiry is
        at least one second after the old one. What carries no expiry is no signed URL and comes back as it is.
        """
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        old_expiry = _expiry(query)
        if old_expiry is None:
            return url
        expiry = max(expires_at.timestamp(), old_expiry.timestamp() + 1)
        kept = {name: value for name, value in query.items() if name not in ("oh", "oe", "_nc_sid")}
        return self._signed(parts.path, kept, datetime.fromtimestamp(expiry, UTC), random.Random(f"{url} {expiry}"))  # noqa: S311

    def _signed(self, path: str, query: dict[str, str], expires_at: datetime, chance: random.Random) -> str:
        other_hosts = [host for host in HOST_CLAIMS if host != query.get("_nc_ht")]
        query |= {"_nc_ht": chance.choice(other_hosts), "_nc_ohc": _token(chance, 23)}
        signed_last = {"oe": f"{int(expires_at.timestamp()):X}", "_nc_sid": f"{chance.getrandbits(24):06x}"}
        signature = sign(path, query | signed_last, self.secret)
        return f"{self.base_url}{path}?{urlencode(query | {'oh': signature} | signed_last)}"


def expiry_of(url: str) -> datetime | None:
    """When a URL of this grammar expires, or None if it does not say."""
    return _expiry(dict(parse_qsl(urlsplit(url).query)))


def _expiry(query: Mapping[str, str]) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(query.get("oe", ""), 16), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _token(chance: random.Random, length: int) -> str:
    return base64.urlsafe_b64encode(chance.randbytes(length)).decode()[:length]
