"""The origin's pictures: what a file name stands for, and what Instagram's `stp` parameter makes of it."""

import hashlib
import random
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Self

from PIL import Image

from cdn_pipeline.demo.photographs import make_photograph

POSTS_FOLDER = "t51.2885-15"
AVATARS_FOLDER = "t51.2885-19"

# Width, height and weight of masters. Those of 1440 px are reduced when p1080x1080 is asked for, none is ever enlarged.
_POST_SIZES = ((1080, 1080, 40), (1080, 1350, 40), (1080, 566, 10), (1440, 1800, 6), (640, 640, 4))
_AVATAR_SIZES = ((320, 320, 60), (640, 640, 30), (1080, 1080, 10))
_QUALITIES = range(70, 91)

_PATH = re.compile(rf"/v/(?P<folder>{POSTS_FOLDER}|{AVATARS_FOLDER})/(?P<file_name>\w+_n\.(?:jpg|heic|webp))")
_CROP = re.compile(r"c(\d+)\.(\d+)\.(\d+)\.(\d+)a?")
_BOX = re.compile(r"([ps])(\d+)x(\d+)")
_FORMATS = {"dst-jpg": "JPEG", "dst-webp": "WEBP"}


@dataclass(frozen=True)
class Picture:
    """One picture at the origin. Everything about it follows from its path, so the origin keeps no list of pictures."""

    folder: str
    file_name: str

    @classmethod
    def at(cls, path: str) -> Self | None:
        """The picture at a URL's path, or None if no picture can be there."""
        match = _PATH.fullmatch(path)
        return cls(**match.groupdict()) if match else None

    @classmethod
    def invent(cls, folder: str, chance: random.Random) -> Self:
        """A picture under a new name of Instagram's form; 3 in 100 have the `.heic` of an iPhone's upload."""
        extension = "heic" if folder == POSTS_FOLDER and chance.random() < 0.03 else "jpg"
        owner, upload, content = (chance.randrange(10 ** (n - 1), 10**n) for n in (9, 16, 19))
        return cls(folder, f"{owner}_{upload}_{content}_n.{extension}")

    @property
    def path(self) -> str:
        """The path of its URLs."""
        return f"/v/{self.folder}/{self.file_name}"

    @cached_property
    def seed(self) -> int:
        """What `make_photograph` makes it from, 64 bits."""
        return int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:8])

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the master in pixels."""
        sizes = _AVATAR_SIZES if self.folder == AVATARS_FOLDER else _POST_SIZES
        [(width, height, _)] = random.Random(self.seed).choices(sizes, weights=[weight for *_, weight in sizes])  # noqa: S311
        return width, height

    @property
    def quality(self) -> int:
        """The JPEG quality of the master and of everything that is made of it."""
        return _QUALITIES[self.seed % len(_QUALITIES)]

    @property
    def square_crop(self) -> str:
        """The part of `stp` that cuts the middle square out of the master, empty where it is square already."""
        width, height = self.size
        if width == height:
            return ""
        side = min(width, height)
        return f"c{(width - side) // 2}.{(height - side) // 2}.{side}.{side}a_"

    def master(self) -> bytes:
        """The picture in full size, as JPEG."""
        width, height = self.size
        return make_photograph(self.seed, width=width, height=height, quality=self.quality)


@dataclass(frozen=True, slots=True)
class Transform:
    """What an `stp` parameter asks for.

    `crop` is left, top, width and height in the master's pixels. `box` is the width and height to reduce to: the
    picture fits inside it, or with `cover` its shorter side does (`p640x640` makes 640x800 of 1440x1800).
    """

    crop: tuple[int, int, int, int] | None = None
    box: tuple[int, int] | None = None
    cover: bool = False
    format: str = "JPEG"

    @classmethod
    def parse(cls, stp: str) -> Self:
        """Reads for example `c0.135.1080.1080a_dst-jpg_e35_s640x640`; parts that change no size are passed over."""
        crop = box = None
        cover, image_format = False, "JPEG"
        for part in stp.split("_"):
            if match := _CROP.fullmatch(part):
                left, top, width, height = map(int, match.groups())
                crop = (left, top, width, height)
            elif match := _BOX.fullmatch(part):
                cover, box = match[1] == "p", (int(match[2]), int(match[3]))
            elif part in _FORMATS:
                image_format = _FORMATS[part]
        return cls(crop, box, cover, image_format)

    def apply(self, master: bytes, quality: int) -> bytes:
        """The bytes to serve: the master's own where nothing is to be changed."""
        with Image.open(BytesIO(master)) as image:
            reduced = self._reduced(image)
            if reduced is image and self.format == image.format:
                return master
            buffer = BytesIO()
            progressive = bool(image.info.get("progressive"))
            if self.format == "JPEG":
                reduced.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", progressive=progressive)
            else:
                reduced.save(buffer, self.format, quality=quality)
            return buffer.getvalue()

    def _reduced(self, image: Image.Image) -> Image.Image:
        if self.crop:
            left, top, width, height = self.crop
            image = image.crop((left, top, left + width, top + height))
        if self.box:
            ratios = (self.box[0] / image.width, self.box[1] / image.height)
            scale = max(ratios) if self.cover else min(ratios)
            if scale < 1:
                size = (round(image.width * scale), round(image.height * scale))
                return image.resize(size, Image.Resampling.LANCZOS)
        return image


class PictureCache:
    """Served bytes on disk, made when first asked for. Threads and processes may share a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def stored(self, picture: Picture, stp: str) -> bytes | None:
        """The bytes of `picture` under `stp`, if they were made before."""
        try:
            return self._place(picture, stp).read_bytes()
        except FileNotFoundError:
            return None

    def make(self, picture: Picture, stp: str) -> bytes:
        """The bytes of `picture` under `stp`, made and stored if need be (16 ms of CPU for a new one of 1080 px)."""
        if (body := self.stored(picture, stp)) is None:
            body = Transform.parse(stp).apply(picture.master(), picture.quality)
            self._store(self._place(picture, stp), body)
        return body

    def _place(self, picture: Picture, stp: str) -> Path:
        name = hashlib.sha256(f"{picture.path}?{stp}".encode()).hexdigest()
        return self._folder / name[:2] / name

    def _store(self, place: Path, body: bytes) -> None:
        place.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as part:
            part.write(body)
        Path(part.name).replace(place)
