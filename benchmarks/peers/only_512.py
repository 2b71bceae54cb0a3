"""The project's definitions with a recipe of 512 px alone and WebP's method 4, which is what img2dataset makes."""

from dataclasses import replace

from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.definitions import build_defs
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.orchestration.resources import MirrorResource

SIDE = 512

RECIPE = replace(
    WEBP_THUMBNAILS,
    name="webp_512",
    sizes=tuple(size for size in WEBP_THUMBNAILS.sizes if size.width == SIDE),
    effort=4,
)


class Only512(MirrorResource):
    """Mirrors with that recipe."""

    @property
    def collection(self) -> Collection:
        """Instagram's, with another recipe."""
        return replace(INSTAGRAM, recipe=RECIPE, rollouts=())


defs = build_defs(resources={"mirror": Only512()})
