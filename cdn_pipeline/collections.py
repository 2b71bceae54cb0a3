"""What a collection is, and the first one: a set of images with its keys, recipe, priorities and retries, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.media.recipes import WEBP_THUMBNAILS, Recipe

# Shards are Dagster partitions: enough to spread over machines, few enough for one screen and for 16 ms per event.
SHARD_COUNT = 64
SHARDS = tuple(f"{number:02x}" for number in range(SHARD_COUNT))

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


@dataclass(frozen=True, slots=True)
class Collection:
    """A set of images that share recipe, keys, priorities and retry policy."""

    name: str
    key_prefix: str
    recipe: Recipe
    priorities: Mapping[str, int]  # by source_type
    retry: RetryPolicy


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
)
