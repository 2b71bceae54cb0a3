"""Start reading here: everything that Dagster knows of this project, in the order of the flow.

profiles, posts → source_images → original_images → image_renditions → published_images

Importing this module touches no network, no file and no secret.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Partitioned checks are a preview and backfill policies are in beta in Dagster 1.13; both are used on purpose.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from cdn_pipeline.orchestration.assets.images import mirrored_images  # noqa: E402
from cdn_pipeline.orchestration.assets.sources import posts, profiles, source_images  # noqa: E402
from cdn_pipeline.orchestration.jobs import publish_images_job  # noqa: E402
from cdn_pipeline.orchestration.resources import MirrorResource  # noqa: E402


def build_defs(*, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The project's definitions; `resources` replaces some of the default ones by name."""
    return dg.Definitions(
        assets=[profiles, posts, source_images, mirrored_images],
        jobs=[publish_images_job],
        resources={"mirror": MirrorResource(), **(resources or {})},
        # The parallelism is inside the step, and the multiprocess executor costs 4 s per step.
        executor=dg.in_process_executor,
    )


defs = build_defs()
