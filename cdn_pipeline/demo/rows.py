"""Rows of the demo's application database as they look when just fetched from Instagram, and a few spoiled ones."""

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from cdn_pipeline.demo.pictures import AVATARS_FOLDER, POSTS_FOLDER, Picture
from cdn_pipeline.demo.signing import Signer

Row = dict[str, Any]

_CAROUSEL_SHARE = 0.12
_CACHE_KEY_SHARE = 0.3
_URL_LIFETIME = timedelta(days=4)
_URL_LIFETIME_SPREAD = timedelta(hours=20)  # all are dead after five days
_WORDS = ("amber", "cedar", "delta", "ember", "fjord", "grove", "harbor", "indigo", "juniper", "kelp", "lumen")

# A post's id at Instagram holds when it was made: milliseconds since this moment, then 23 bits of shard and sequence.
_MEDIA_PK_EPOCH_MS = 1_314_220_021_721


@dataclass(frozen=True, slots=True)
class RowMaker:
    """Draws rows as they look when fetched from Instagram at `now`."""

    signer: Signer
    chance: random.Random
    now: datetime

    @classmethod
    def seeded(cls, signer: Signer, seed: int | str, now: datetime) -> Self:
        """A maker that draws the same rows for the same arguments."""
        return cls(signer, random.Random(seed), now)  # noqa: S311

    def expiry(self) -> datetime:
        """When URLs signed now expire."""
        return self.now + _URL_LIFETIME + _URL_LIFETIME_SPREAD * self.chance.random()

    def profile(self) -> Row:
        """A profile with its avatar."""
        first, second = self.chance.sample(_WORDS, 2)
        return {
            "id": self._uuid(),
            "username": f"{first}.{second}{self.chance.randrange(1000):03d}",
            **self.avatar_urls(Picture.invent(AVATARS_FOLDER, self.chance)),
            "updated_at": self.now,
        }

    def avatar_urls(self, picture: Picture) -> Row:
        """The columns of a profile's avatar: 150 px, and the whole picture (320 to 1080 px)."""
        expires_at = self.expiry()
        return {
            "profile_pic_url": self.signer.url(picture, "dst-jpg_s150x150", expires_at, self.chance),
            "profile_pic_url_hd": self.signer.url(picture, "dst-jpg_e35", expires_at, self.chance),
        }

    def posts_of(self, profile_id: uuid.UUID, number: int) -> list[Row]:
        """Posts taken one to five days apart, the newest first."""
        taken_at, rows = self.now, []
        for _ in range(number):
            taken_at -= timedelta(days=1) + timedelta(days=4) * self.chance.random()
            rows.append(self.post(profile_id, taken_at))
        return rows

    def post(self, profile_id: uuid.UUID, taken_at: datetime) -> Row:
        """A post, which may be a carousel."""
        picture = Picture.invent(POSTS_FOLDER, self.chance)
        media_id = self._media_pk(taken_at)
        expires_at = self.expiry()
        carousel = self.chance.random() < _CAROUSEL_SHARE
        picture_pk = self._media_pk(taken_at) if carousel else media_id  # a carousel shows its first child
        with_key = picture_pk if self.chance.random() < _CACHE_KEY_SHARE else None
        display_url = self._display_url(picture, expires_at, with_key)
        thumbnail_stp = f"{picture.square_crop}dst-jpg_e35_s640x640_sh0.08"
        return {
            "id": self._uuid(),
            "profile_id": profile_id,
            "media_id": media_id,
            "display_url": display_url,
            "thumbnail_src": self.signer.url(picture, thumbnail_stp, expires_at, self.chance, media_pk=with_key),
            "sidecar_children": self._children(_node(picture_pk, picture, display_url), taken_at) if carousel else None,
            "taken_at": taken_at,
            "updated_at": self.now,
        }

    def forgotten_post(self, profile_id: uuid.UUID) -> Row:
        """A post of two years ago that nobody has fetched since: its URLs are long dead."""
        long_ago = self.now - timedelta(days=730)
        return RowMaker(self.signer, self.chance, long_ago).post(profile_id, long_ago)

    def _children(self, first: Row, taken_at: datetime) -> list[Row] | Row:
        nodes = [first]
        for _ in range(self.chance.randint(1, 3)):
            picture = Picture.invent(POSTS_FOLDER, self.chance)
            url = self._display_url(picture, self.expiry(), None)
            nodes.append(_node(self._media_pk(taken_at), picture, url))
        return nodes if self.chance.random() < 0.5 else {"edges": [{"node": node} for node in nodes]}

    def _display_url(self, picture: Picture, expires_at: datetime, media_pk: str | None) -> str:
        return self.signer.url(picture, "dst-jpg_e35_p1080x1080", expires_at, self.chance, media_pk=media_pk)

    def _media_pk(self, taken_at: datetime) -> str:
        milliseconds = int(taken_at.timestamp() * 1000) - _MEDIA_PK_EPOCH_MS
        return str(milliseconds << 23 | self.chance.getrandbits(23))

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(bytes=self.chance.randbytes(16), version=4)


def _node(media_pk: str, picture: Picture, display_url: str) -> Row:
    width, height = picture.size
    return {
        "__typename": "GraphImage",
        "id": media_pk,
        "display_url": display_url,
        "is_video": False,
        "dimensions": {"height": height, "width": width},
    }


_Spoiler = Callable[[Row], Row]

# Each spoils one row: it returns the columns to replace.
PROFILE_SPOILERS: Sequence[_Spoiler] = (
    lambda row: {"profile_pic_url": None, "profile_pic_url_hd": None},
    lambda row: {"profile_pic_url_hd": None},
    lambda row: {"profile_pic_url_hd": ""},
)
POST_SPOILERS: Sequence[_Spoiler] = (
    lambda row: {"display_url": None},
    lambda row: {"display_url": None, "thumbnail_src": None, "sidecar_children": None},
    lambda row: {"display_url": "no picture", "thumbnail_src": None},
    lambda row: {"display_url": row["display_url"].replace("&", r"\u0026"), "thumbnail_src": None},
    lambda row: {"media_id": f"{row['media_id']}_7/ü?"},
)


def spoil(rows: list[Row], spoilers: Sequence[_Spoiler], chance: random.Random) -> None:
    """Applies each spoiler to another row, in place; which rows, `chance` decides."""
    for row, spoiler in zip(chance.sample(rows, min(len(rows), len(spoilers))), spoilers, strict=False):
        row.update(spoiler(row))
