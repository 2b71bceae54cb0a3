"""Pictures for the media tests: made with Pillow, some with an ICC profile made here."""

import math
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageStat

ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def scene(width: int, height: int) -> Image.Image:
    """Smooth, colourful, and different in each corner."""
    horizontal = Image.linear_gradient("L").rotate(90).resize((width, height))
    vertical = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (horizontal, vertical, Image.radial_gradient("L").resize((width, height))))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference in levels, over all bands."""
    assert (one.mode, one.size) == (other.mode, other.size)
    bands = ImageStat.Stat(ImageChops.difference(one, other)).mean
    return sum(bands) / len(bands)


def decibels(one: Image.Image, other: Image.Image) -> float:
    """PSNR over all bands; infinite if nothing differs."""
    assert (one.mode, one.size) == (other.mode, other.size)
    found = ImageStat.Stat(ImageChops.difference(one, other))
    error = sum(found.sum2) / sum(found.count)
    return 10 * math.log10(255**2 / error) if error else math.inf


def riff_chunks(webp: bytes) -> list[bytes]:
    """The names of a WebP's chunks, in order."""
    names, at = [], 12
    while at < len(webp):
        names.append(webp[at : at + 4])
        size = int.from_bytes(webp[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return names


def rgb_profile(colorants: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile of three primaries (XYZ relative to D50) and one gamma."""
    tags = {name: _xyz(colorant) for name, colorant in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colorants, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def gray_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def cmyk_profile_of_black_ink_only() -> bytes:
    """An ICC profile in which cyan, magenta and yellow print nothing: L* falls with K alone."""
    ramp = bytes(range(256))
    corners = b"".join(bytes((0 if corner & 1 else 255, 128, 128)) for corner in range(16))  # K varies fastest
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + ramp * 4 + corners + ramp * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table})


def _xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(colour_space: bytes, connection_space: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz((0.9642, 1.0, 0.8249)), **tags}
    directory, body = b"", b""
    for name, value in tags.items():
        directory += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    device_class = b"prtr" if colour_space == b"CMYK" else b"mntr"
    illuminant = _xyz((0.9642, 1.0, 0.8249))[8:]
    header = struct.pack(">4xI4s4s4s", 0x02400000, device_class, colour_space, connection_space)
    header += bytes(12) + b"acsp" + bytes(28) + illuminant + bytes(48)
    table = header + struct.pack(">I", len(tags)) + directory + body
    return struct.pack(">I", len(table) + 4) + table
