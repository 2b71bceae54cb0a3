"""Run configuration: what an operator may ask of one run, in the launchpad or with `--config`."""

import dagster as dg
from pydantic import Field

# A run with this tag also tries again at once what waits for a later attempt, and asks sources whether their pictures
# changed. No option below, because Dagster gives the configuration of a partitioned job to backfills and to the
# launchpad only, not to `dagster job execute` and not to a schedule's range of shards.
FRESHNESS_TAG = "freshness"


class MirrorConfig(dg.Config):
    """Options of a run of the image assets. The defaults do what is due and nothing else."""

    force: bool = Field(
        default=False,
        description="Process every image of the selected shards again, due or not: downloaded again if "
        "`original_images` is selected, else encoded again from stored originals.",
    )
    owner_ids: list[str] = Field(
        default_factory=list, description="Only images of these owners (profile ids). Empty means all."
    )
    limit: int | None = Field(default=None, gt=0, description="Claim at most this many images in this run.")


class CleanUpConfig(dg.Config):
    """Options of clean-up. The default removes."""

    dry_run: bool = Field(default=False, description="Only tell what would be removed.")
    limit: int = Field(default=10_000, gt=0, description="Remove so many of each kind, and then the next so many.")
    minutes: int = Field(default=60, ge=0, description="Go on for so long; the next run takes what is left then.")


class ProbeConfig(dg.Config):
    """Options of probing what is published."""

    sample: int = Field(default=200, gt=0, le=2000, description="Ask for so many URLs, each of them twice.")


class DiscoverConfig(dg.Config):
    """Options of discovery. The default reads every row of the run's shards."""

    changed_only: bool = Field(
        default=False,
        description="Read only profiles that changed, or whose posts did, since their shard was last read. Rows that "
        "are gone are not noticed.",
    )
