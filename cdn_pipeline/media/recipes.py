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

    The version covers these settings only: raise it when one of them changes. Encoder libraries are recorded per
    rendition and are never a reason to encode again. `quality` and `effort` are the encoder's own scales
    (WebP: 0-100 and `method` 0-6); aspect ratio is kept and nothing is ever enlarged.
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


WEBP_THUMBNAILS = Recipe(
    name="webp_thumbnails",
    version=1,
    sizes=(Size("256", 256, 256), Size("512", 512, 512)),
    format="webp",
    quality=85,
    effort=6,
)
