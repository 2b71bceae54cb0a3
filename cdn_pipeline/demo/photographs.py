"""Photographs for the demo: cut from the real ones that scikit-image ships, another one for every seed."""

import importlib.util
import random
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps


class PhotographsMissingError(Exception):
    """The package whose photographs the demo uses is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of scikit-image's data folder.

    `weight` is how often it is drawn; `closest` is the smallest part of it, by side, that still shows something.
    """

    file_name: str
    weight: int
    closest: float


# Scenes and faces are drawn more often than textures, as in a feed. Not used: drawings, masks, and what is tiny.
_SOURCES = (
    _Source("astronaut.png", 4, 0.65),
    _Source("brick.png", 1, 0.4),
    _Source("camera.png", 3, 0.65),
    _Source("chelsea.png", 4, 0.7),
    _Source("coffee.png", 4, 0.6),
    _Source("coins.png", 2, 0.45),
    _Source("grass.png", 1, 0.5),
    _Source("gravel.png", 1, 0.5),
    _Source("hubble_deep_field.jpg", 3, 0.3),
    _Source("ihc.png", 2, 0.4),
    _Source("moon.png", 1, 0.5),
    _Source("motorcycle_left.png", 3, 0.5),
    _Source("motorcycle_right.png", 3, 0.5),
    _Source("retina.jpg", 1, 0.4),
    _Source("rocket.jpg", 4, 0.65),
)


def make_photograph(seed: int, *, width: int, height: int, quality: int) -> bytes:
    """A photograph as JPEG (4:2:0; baseline or progressive), the same bytes for the same arguments.

    The seed decides scene, crop, mirroring and tone: no two seeds give the same picture. `width` and `height` are
    in pixels, `quality` is libjpeg's 1-95.

    Raises:
        PhotographsMissingError: scikit-image is not installed.
    """
    chance = random.Random(seed)  # noqa: S311
    [source] = chance.choices(_SOURCES, weights=[source.weight for source in _SOURCES])
    image = _cut(_load(source.file_name), chance, width / height, source.closest)
    image = _tone(image, chance)  # before enlarging: a quarter of the pixels
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    progressive = chance.random() < 0.25  # takes 14 ms to encode where a baseline JPEG takes 3
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0", progressive=progressive)
    return buffer.getvalue()


@cache
def photographs_folder() -> Path:
    """The folder of scikit-image's photographs; the package itself is never imported.

    Raises:
        PhotographsMissingError: scikit-image is not installed.
    """
    package = importlib.util.find_spec("skimage")
    folders = [Path(place) / "data" for place in (package.submodule_search_locations or ())] if package else []
    for folder in folders:
        if all((folder / source.file_name).exists() for source in _SOURCES):
            return folder
    raise PhotographsMissingError(
        "the demo's photographs come with scikit-image: pip install --no-deps -r requirements/photos.txt"
    )


@cache
def _load(file_name: str) -> Image.Image:
    with Image.open(photographs_folder() / file_name) as image:
        return image.convert("RGB")


def _cut(image: Image.Image, chance: random.Random, aspect: float, closest: float) -> Image.Image:
    """A random part of the image with this aspect ratio (width / height), mirrored half of the time."""
    width, height = image.size
    scale = chance.uniform(closest, 1.0) * min(width / aspect, height)
    part_width, part_height = scale * aspect, scale
    left = chance.uniform(0, width - part_width)
    top = chance.uniform(0, height - part_height)
    part = image.crop((round(left), round(top), round(left + part_width), round(top + part_height)))
    return ImageOps.mirror(part) if chance.random() < 0.5 else part


def _tone(image: Image.Image, chance: random.Random) -> Image.Image:
    """Slightly other saturation, contrast, light and white balance."""
    image = ImageEnhance.Color(image).enhance(chance.uniform(0.7, 1.3))
    contrast, light, warmth = chance.uniform(0.85, 1.2), chance.uniform(-15, 15), chance.uniform(-0.1, 0.1)
    gains = (1 + warmth, 1.0, 1 - warmth)
    return image.point(
        [_clip(gain * (128 + contrast * (level - 128) + light)) for gain in gains for level in range(256)]
    )


def _clip(level: float) -> int:
    return min(255, max(0, round(level)))
