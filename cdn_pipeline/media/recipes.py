"""Recipes: named, versioned ways to make renditions of an original."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """A box that a rendition fits inside, in pixels; `name` is what keys and the catalog call it."""

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named, versioned way to make renditions.

    The version covers these settings and the resampler: raise it when one of them changes (1 was resampled by Pillow,
    2 by libvips, 3 makes 256 px from 512 px). The libraries' versions are recorded per rendition and are never a reason
    to encode again. `quality` (0-100) and `effort` are the encoder's own scales: WebP's `method` 0-6, where 6 takes the
    longest, and AVIF's `speed` 0-10, where 0 does. Aspect ratio is kept and nothing is ever enlarged.
    """

    name: str
    version: int
    sizes: tuple[Size, ...]
    format: str
    quality: int
    effort: int

    @property
    def content_type(self) -> str:
        """The MIME type of the renditions."""
        return f"image/{self.format}"

    @property
    def longest_sides(self) -> list[int]:
        """The longer side of each size's box, in pixels."""
        return [max(size.width, size.height) for size in self.sizes]


_THUMBNAIL_SIZES = (Size("256", 256, 256), Size("512", 512, 512))

WEBP_THUMBNAILS = Recipe(
    name="webp_thumbnails",
    version=3,
    sizes=_THUMBNAIL_SIZES,
    format="webp",
    quality=85,
    effort=6,
)

# As good as the WebP above. Both sizes of 60 demo photographs against the resized pixels (PSNR, SSIM), bytes and CPU of
# encoding per image:
#
#     WebP 85, method 6    38.0 dB  0.980   38.5 KB    55 ms
#     AVIF 70, speed 8     38.0 dB  0.979   35.2 KB    72 ms
#     AVIF 67, speed 6     38.0 dB  0.981   31.2 KB   194 ms
#     AVIF 67, speed 4     38.2 dB  0.983   30.4 KB  1150 ms
#
# An image is encoded once, in the background, and delivered many times: worth 194 ms, and not 1,150.
AVIF_THUMBNAILS = Recipe(
    name="avif_thumbnails",
    version=3,
    sizes=_THUMBNAIL_SIZES,
    format="avif",
    quality=67,
    effort=6,
)
