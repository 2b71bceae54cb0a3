"""Resampling: decoded pixels in, smaller pictures out, by Lanczos on sRGB values.

libvips does it in about half of Pillow's CPU time (1080x1350 to both sizes, copy of the pixels included), with SIMD, at
least 48 dB from it on photographs and drawings (`benchmarks.quality`). It gets pixels only, never a file: no decoder of
its own runs. Pillow does what libvips has no call or no room for, and what is too thin for 45 dB.
"""

from collections.abc import Collection

import pyvips
from PIL import Image

RESAMPLER = f"libvips {pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}"
"""What resamples ordinary pictures."""

MAX_COPIED_PIXELS = 6_000_000
"""libvips works on a copy, of 3 bytes per pixel; what is larger has no room for one."""

_THIN = 32  # pixels; a rendition of 256x2 is 35 dB from Pillow's
_MAX_SHRINK = 300  # along a side; libvips refuses 334
_FINE = 1.9  # times as large, along each side, is enough to be made smaller again; 2, but for rounding
_MOST_CLIPPED = 0.005  # of the values of what is made smaller again; line art has 0.5 there, and would be 38 dB away

Sides = tuple[int, int]
Box = tuple[float, float, float, float]

pyvips.cache_set_max(0)  # it would keep pictures alive that are never asked for again


def resample(image: Image.Image, box: Box, sizes: Collection[Sides]) -> dict[Sides, Image.Image]:
    """The part of an RGB or RGBA image that `box` (left, top, right, bottom) tells, in each of these smaller sizes.

    Alpha is premultiplied, by Pillow. Raises MemoryError.
    """
    ours = [size for size in sizes if size != image.size and _suits_libvips(image, box, size)]
    made = _shrink(image, ours) if ours else {}
    return {size: made.get(size) or image.resize(size, Image.Resampling.LANCZOS, box) for size in sizes}


def _suits_libvips(image: Image.Image, box: Box, size: Sides) -> bool:
    """Opaque, whole, and within bounds."""
    width, height = image.size
    opaque_and_whole = image.mode == "RGB" and box == (0, 0, width, height)
    shrink = max(width / size[0], height / size[1])
    return opaque_and_whole and width * height <= MAX_COPIED_PIXELS and min(size) >= _THIN and shrink <= _MAX_SHRINK


def _shrink(image: Image.Image, sizes: Collection[Sides]) -> dict[Sides, Image.Image]:
    """Largest first, and from it the smaller ones where it serves: 512 and 256 px then cost a third less."""
    made: dict[Sides, Image.Image] = {}
    larger: Image.Image | None = None
    for size in sorted(sizes, reverse=True):
        source = larger if larger is not None and _serves(larger, size) else image
        larger = made[size] = _reduce(source, size)
    return made


def _serves(larger: Image.Image, size: Sides) -> bool:
    """Whether this size comes out of a larger one much as it would out of all pixels.

    256 px from 512 px are 49 dB and more from Pillow's, as 256 px from all pixels are, but for edges so hard that
    Lanczos overshoots: what was clipped there is missing.
    """
    if min(larger.width / size[0], larger.height / size[1]) < _FINE:
        return False
    histogram = larger.histogram()
    clipped = sum(histogram[::256]) + sum(histogram[255::256])
    return clipped <= _MOST_CLIPPED * sum(histogram)


def _reduce(image: Image.Image, size: Sides) -> Image.Image:
    """Rows before columns, as Pillow does: both clip to 8 bits in between, and libvips' own `reduce`, which has columns
    first, is 39 dB from Pillow at hard edges. The region is computed in this thread; libvips starts none of its own.
    """
    width, height = size
    try:
        pixels = pyvips.Image.new_from_memory(image.tobytes(), *image.size, bands=3, format="uchar")
        narrow = pixels.reduceh(image.width / width, kernel="lanczos3")
        small = narrow.reducev(image.height / height, kernel="lanczos3")
        data = pyvips.Region.new(small).fetch(0, 0, width, height)
    except pyvips.Error as error:  # with sound pixels and sizes, only for want of memory
        raise MemoryError(str(error)) from error
    return Image.frombuffer("RGB", size, data, "raw", "RGB", 0, 1)
