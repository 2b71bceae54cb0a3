"""Run configuration: what an operator may ask of one run, in the launchpad or with `--config`."""

import dagster as dg
from pydantic import Field


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
