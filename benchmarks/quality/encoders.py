"""The encoders under study, each a function of pixels and a quality setting."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import pyvips  # type: ignore[import-not-found,unused-ignore]
from PIL import Image

from cdn_pipeline.media.recipes import WEBP_THUMBNAILS

pyvips.cache_set_max(0)  # else the same call on the same pixels would cost nothing the second time


@dataclass(frozen=True, slots=True)
class Encoder:
    """`settings` are the points of its curve: WebP's and AVIF's quality scales are not the same."""

    name: str
    encode: Callable[[Image.Image, int], bytes]
    settings: tuple[int, ...]


def _webp(method: int) -> Callable[[Image.Image, int], bytes]:
    def encode(image: Image.Image, quality: int) -> bytes:
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=method)
        return buffer.getvalue()

    return encode


def _vips_webp(*, sharp: bool) -> Callable[[Image.Image, int], bytes]:
    """Through libvips, because Pillow's plugin has no sharp YUV."""

    def encode(image: Image.Image, quality: int) -> bytes:
        pixels = pyvips.Image.new_from_memory(
            image.tobytes(), image.width, image.height, len(image.getbands()), "uchar"
        )
        return bytes(
            pixels.webpsave_buffer(Q=quality, effort=WEBP_THUMBNAILS.effort, smart_subsample=sharp, keep="none")
        )

    return encode


def _avif(speed: int) -> Callable[[Image.Image, int], bytes]:
    def encode(image: Image.Image, quality: int) -> bytes:
        buffer = BytesIO()
        image.save(buffer, "AVIF", quality=quality, speed=speed, codec="aom", max_threads=1)
        return buffer.getvalue()

    return encode


_NEAR = (80, 85, 90)
PRESENT = Encoder("WebP method 6", _webp(WEBP_THUMBNAILS.effort), (55, 70, 80, 85, 90, 95))
METHOD_4 = Encoder("WebP method 4", _webp(4), _NEAR)
METHOD_5 = Encoder("WebP method 5", _webp(5), _NEAR)
VIPS = Encoder("WebP method 6 of libvips", _vips_webp(sharp=False), ())
SHARP_YUV = Encoder("WebP method 6, sharp YUV", _vips_webp(sharp=True), (65, 75, 85, 90))
AVIF_6 = Encoder("AVIF speed 6", _avif(6), (50, 60, 70, 80))
AVIF_8 = Encoder("AVIF speed 8", _avif(8), (50, 60, 70, 80))

OTHERS = (METHOD_5, METHOD_4, SHARP_YUV, AVIF_6, AVIF_8)
"""What is compared with the present recipe."""
