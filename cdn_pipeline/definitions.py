"""Start reading here: everything that Dagster knows of this project, in the order of the flow.

profiles, posts → source_images → original_images → image_renditions → published_images

and beside it, from the jobs alone: processing_stats, hour by hour; what strangers get: delivery_probes; and what is
removed again: cleaned_stores

Importing this module touches no network, no file and no secret.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

# Partitioned checks are a preview and backfill policies are in beta in Dagster 1.13; both are used on purpose.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from cdn_pipeline.orchestration.alerts import alerts_sensor  # noqa: E402
from cdn_pipeline.orchestration.assets.delivery import (  # noqa: E402
    delivery_probes,
    no_published_url_is_broken,
    urls_answer_within_150_ms,
)
from cdn_pipeline.orchestration.assets.images import mirrored_images  # noqa: E402
from cdn_pipeline.orchestration.assets.sources import posts, profiles, source_images  # noqa: E402
from cdn_pipeline.orchestration.assets.stats import (  # noqa: E402
    mean_processing_time,
    processing_stats,
    stats_consistent_with_jobs,
)
from cdn_pipeline.orchestration.assets.upkeep import (  # noqa: E402
    cleaned_stores,
    stores_hold_what_the_catalog_says,
)
from cdn_pipeline.orchestration.jobs import (  # noqa: E402
    clean_up_job,
    hourly_stats_job,
    nightly_freshness_job,
    probe_delivery_job,
    publish_images_job,
    standing_checks_job,
)
from cdn_pipeline.orchestration.resources import CatalogResource, MirrorResource  # noqa: E402
from cdn_pipeline.orchestration.schedules import (  # noqa: E402
    clean_up_schedule,
    hourly_stats_schedule,
    nightly_freshness_schedule,
    probe_delivery_schedule,
    standing_checks_schedule,
)
from cdn_pipeline.orchestration.sensors import due_images_sensor  # noqa: E402
from cdn_pipeline.orchestration.standing_checks import standing_checks  # noqa: E402


def build_defs(*, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The project's definitions; `resources` replaces some of the default ones by name."""
    return dg.Definitions(
        assets=[profiles, posts, source_images, mirrored_images, processing_stats, delivery_probes, cleaned_stores],
        asset_checks=[
            standing_checks,
            mean_processing_time,
            stats_consistent_with_jobs,
            urls_answer_within_150_ms,
            no_published_url_is_broken,
            stores_hold_what_the_catalog_says,
        ],
        jobs=[
            publish_images_job,
            nightly_freshness_job,
            hourly_stats_job,
            standing_checks_job,
            probe_delivery_job,
            clean_up_job,
        ],
        schedules=[
            nightly_freshness_schedule,
            hourly_stats_schedule,
            standing_checks_schedule,
            probe_delivery_schedule,
            clean_up_schedule,
        ],
        sensors=[due_images_sensor, alerts_sensor],
        resources={"mirror": MirrorResource(), "catalog": CatalogResource(), **(resources or {})},
        # The parallelism is inside the step, and the multiprocess executor costs 4 s per step.
        executor=dg.in_process_executor,
    )


defs = build_defs()
