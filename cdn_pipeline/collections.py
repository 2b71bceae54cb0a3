"""What a collection is, and the first one: a set of images with its keys, recipe, priorities and retries, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, WEBP_THUMBNAILS, Recipe

# Shards are Dagster partitions: enough to spread over machines, few enough for one screen and for 16 ms per event.
SHARD_COUNT = 64
SHARDS = tuple(f"{number:02x}" for number in range(SHARD_COUNT))

URGENT_PRIORITY = 1  # a user's request
BACKFILL_PRIORITY = 6
REENCODE_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a transient failure is tried again.

    The first `in_run` delays are short enough for a run to wait for (each ± `jitter`); later ones leave the job to a
    later run. The last delay repeats until the source URL expires.
    """

    in_run: tuple[timedelta, ...]
    later: tuple[timedelta, ...]
    jitter: float

    def delay(self, attempt: int) -> timedelta:
        """The wait after failed attempt number `attempt` (1 is the first), without jitter."""
        ladder = self.in_run + self.later
        return ladder[min(attempt, len(ladder)) - 1]


class UnknownRecipeError(ValueError):
    """The collection has no recipe of this name; the message says which it has."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of images that share recipes, keys, priorities and retry policy.

    `recipe` is made of every image; those in `rollouts` are made beside it once they have been rolled out. No two
    recipes share a format: an image has one current rendition per size and format.
    """

    name: str
    key_prefix: str
    recipe: Recipe
    priorities: Mapping[str, int]  # by source_type
    retry: RetryPolicy
    rollouts: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        for aspect in ({recipe.name for recipe in self.recipes}, {recipe.format for recipe in self.recipes}):
            if len(aspect) < len(self.recipes):
                raise ValueError(f"recipes of {self.name} share a name or a format: {sorted(aspect)}")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """All recipes, the collection's own first."""
        return self.recipe, *self.rollouts

    def recipe_named(self, name: str | None) -> Recipe:
        """The recipe of this name; None is the collection's own.

        Raises:
            UnknownRecipeError: there is none.
        """
        if name is None:
            return self.recipe
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        raise UnknownRecipeError(f"{self.name} has no recipe {name!r}, but {', '.join(r.name for r in self.recipes)}")


INSTAGRAM = Collection(
    name="instagram",
    key_prefix="th/ig",
    recipe=WEBP_THUMBNAILS,
    priorities={"profile_avatar": 2, "post_thumbnail": 4, "post_carousel": 4},
    retry=RetryPolicy(
        in_run=(timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=20)),
        later=(timedelta(minutes=15), timedelta(hours=1), timedelta(hours=6), timedelta(days=1)),
        jitter=0.2,
    ),
    rollouts=(AVIF_THUMBNAILS,),
)
