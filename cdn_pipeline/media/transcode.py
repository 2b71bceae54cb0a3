"""Transcoding: an original in, the renditions of a recipe out."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import PIL
from PIL import AvifImagePlugin, Image, features

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.decode import MAX_PIXELS, Decoded, decode
from cdn_pipeline.media.placeholder import placeholder_of
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.resample import RESAMPLER, resample

_AVIF_CODEC = "aom"

_LIBRARIES = f"pillow {PIL.__version__} {RESAMPLER}"
ENCODERS = {"webp": f"{_LIBRARIES} libwebp {features.version('webp')}"}
"""What makes each format, recorded per rendition: the same recipe may give other bytes after an upgrade."""

if features.check("avif"):  # as in Pillow's own wheels
    _codec = f"{_AVIF_CODEC} {AvifImagePlugin.get_codec_version(_AVIF_CODEC)}"
    ENCODERS["avif"] = f"{_LIBRARIES} libavif {features.version('avif')} {_codec}"


@dataclass(frozen=True, slots=True)
class Rendition:
    """What a recipe made of an original for one size; `width` and `height` in pixels, `sha256` of `data` in hex."""

    size: str
    width: int
    height: int
    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Transcoded:
    """The renditions of an original, in the order of the recipe's sizes, and their placeholder.

    `format`, `width` and `height` are the original's, upright, in pixels; `cpu_ms` is CPU time of this process.
    """

    format: str
    width: int
    height: int
    renditions: tuple[Rendition, ...]
    placeholder: str
    encoder: str
    cpu_ms: float


def transcode(data: bytes, recipe: Recipe, max_pixels: int = MAX_PIXELS) -> Transcoded:
    """Makes all renditions of a recipe from one decode, of an original with at most `max_pixels`.

    The same bytes and the same encoder give the same renditions. Raises `ImageFailure` as `decode` does, and ValueError
    for a recipe whose format has no encoder here.
    """
    if recipe.format not in ENCODERS:
        raise ValueError(f"no encoder for {recipe.format!r}")
    started = time.process_time()
    decoded = decode(data, longest_side=max(recipe.longest_sides), max_pixels=max_pixels)
    try:
        pictures = _resize_all(decoded, recipe)
        renditions = _encode_all(pictures, recipe)
        placeholder = placeholder_of(min(pictures.values(), key=lambda picture: picture.size))
    except MemoryError as error:
        raise ImageFailure(FailureKind.OUT_OF_MEMORY, "while encoding") from error
    cpu_ms = (time.process_time() - started) * 1000
    encoder = ENCODERS[recipe.format]
    return Transcoded(decoded.format.value, decoded.width, decoded.height, renditions, placeholder, encoder, cpu_ms)


def fit_inside(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """The largest size of this aspect ratio inside the box, rounded to whole pixels, at least 1, never enlarged."""
    if width <= box_width and height <= box_height:
        return width, height
    if width * box_height >= height * box_width:
        return box_width, max(1, _divide(height * box_width, width))
    return max(1, _divide(width * box_height, height)), box_height


def _divide(dividend: int, divisor: int) -> int:
    """The quotient rounded to the nearest integer, halves up."""
    return (2 * dividend + divisor) // (2 * divisor)


def _resize_all(decoded: Decoded, recipe: Recipe) -> dict[str, Image.Image]:
    """The pixels of each size, by its name; sizes that a small original does not fill share theirs."""
    sides = {size.name: fit_inside(decoded.width, decoded.height, size.width, size.height) for size in recipe.sizes}
    pictures = resample(decoded.image, decoded.box, set(sides.values()))
    return {name: pictures[width, height] for name, (width, height) in sides.items()}


def _encode_all(pictures: Mapping[str, Image.Image], recipe: Recipe) -> tuple[Rendition, ...]:
    """One rendition per size; what shares its pixels shares its bytes."""
    different = {picture.size: picture for picture in pictures.values()}
    encoded = {sides: _encode(picture, recipe) for sides, picture in different.items()}
    renditions = []
    for name, picture in pictures.items():
        data = encoded[picture.size]
        renditions.append(Rendition(name, *picture.size, data, hashlib.sha256(data).hexdigest()))
    return tuple(renditions)


def _encode(image: Image.Image, recipe: Recipe) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=recipe.format, quality=recipe.quality, **_encoder_options(recipe))
    return buffer.getvalue()


def _encoder_options(recipe: Recipe) -> dict[str, Any]:
    """What Pillow calls the effort, and what else decides the bytes."""
    if recipe.format == "webp":
        # Opaque 512 px take 50 ms at 6; alpha, which is lossless, adds 1-7 s there and 0.1 s at 5.
        return {"method": recipe.effort}
    # More threads than one give other bytes, and a worker has one core.
    return {"speed": recipe.effort, "codec": _AVIF_CODEC, "max_threads": 1}
