from dataclasses import replace

import pytest

from cdn_pipeline.collections import INSTAGRAM, UnknownRecipeError
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS, Recipe


def test_recipes_are_known_by_name_and_none_is_the_collections_own() -> None:
    assert INSTAGRAM.recipes == (WEBP_THUMBNAILS, AVIF_THUMBNAILS)
    assert INSTAGRAM.recipe_named(None) is WEBP_THUMBNAILS
    assert INSTAGRAM.recipe_named("webp_thumbnails") is WEBP_THUMBNAILS
    assert INSTAGRAM.recipe_named("avif_thumbnails") is AVIF_THUMBNAILS


def test_an_unknown_recipe_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UnknownRecipeError, match=r"'jpeg'.*webp_thumbnails, avif_thumbnails"):
        INSTAGRAM.recipe_named("jpeg")


@pytest.mark.parametrize(
    "other",
    [replace(AVIF_THUMBNAILS, name=WEBP_THUMBNAILS.name), replace(WEBP_THUMBNAILS, name="sharper")],
    ids=["name", "format"],
)
def test_two_recipes_of_one_name_or_format_would_take_each_others_place(other: Recipe) -> None:
    with pytest.raises(ValueError, match="share a name or a format"):
        replace(INSTAGRAM, rollouts=(other,))


def test_names_fit_the_catalogs_columns() -> None:
    assert all(len(recipe.name) <= 40 and len(recipe.format) <= 10 for recipe in INSTAGRAM.recipes)
