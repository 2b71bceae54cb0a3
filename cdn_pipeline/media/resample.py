"""Resampling: decoded pixels in, smaller pictures out, by Lanczos on sRGB values.

libvips does it in two thirds of Pillow's CPU time (1080x1350 to both sizes, copy of the pixels included), with SIMD, at
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

Sides = tuple[int, int]
Box = tuple[float, float, float, float]

pyvips.cache_set_max(0)  # it would keep pictures alive that are never asked for again


def resample(image: Image.Image, box: Box, sizes: Collection[Sides]) -> dict[Sides, Image.Image]:
    """The part of an RGB or RGBA image that `box` (left, top, right, bottom) tells, in each of these smaller sizes.

    Each is made from all the pixels: 256 made from 512 would be 52-56 dB away. Alpha is premultiplied, by Pillow.
    Raises MemoryError.
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
    """One copy of the pixels serves all sizes; the region is computed in this thread, libvips starts none of its own.

    Rows before columns, as Pillow does: both clip to 8 bits in between, and `reduce`, which has columns first, is
    39 dB from Pillow at hard edges.
    """
    try:
        pixels = pyvips.Image.new_from_memory(image.tobytes(), *image.size, bands=3, format="uchar")
        made = {}
        for width, height in sizes:
            narrow = pixels.reduceh(image.width / width, kernel="lanczos3")
            small = narrow.reducev(image.height / height, kernel="lanczos3")
            data = pyvips.Region.new(small).fetch(0, 0, width, height)
            made[width, height] = Image.frombuffer("RGB", (width, height), data, "raw", "RGB", 0, 1)
        return made
    except pyvips.Error as error:  # with sound pixels and sizes, only for want of memory
        raise MemoryError(str(error)) from error
