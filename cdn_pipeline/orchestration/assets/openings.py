"""The jobs that a run opens before it works through what is due: an operator's, a rollout's, the night's."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.orchestration.config import FRESHNESS_TAG, MirrorConfig

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.engine.mirror import Mirror
    from cdn_pipeline.queue.due import Selection


def open_jobs(
    context: dg.AssetExecutionContext,
    config: MirrorConfig,
    mirror: "Mirror",
    selection: "Selection",
    shards: Sequence[str],
) -> None:
    """Opens what the run's configuration, its tags and the rollouts that are under way ask for."""
    _open_jobs_again(selection, config, mirror, shards)
    _open_rollout_jobs(context, selection, mirror, shards)
    if FRESHNESS_TAG in context.run.tags:
        _refresh(context, mirror, shards)


def _open_jobs_again(selection: "Selection", config: MirrorConfig, mirror: "Mirror", shards: Sequence[str]) -> None:
    from cdn_pipeline.catalog.sessions import transaction
    from cdn_pipeline.engine.outages import CATALOG_PATIENCE
    from cdn_pipeline.queue.reopen import open_jobs_again
    from cdn_pipeline.queue.states import Stage

    downloads = Stage.DOWNLOAD in selection.stages
    from_originals = not downloads and Stage.ENCODE in selection.stages
    if not (from_originals or (downloads and config.force)):
        return
    reopen = partial(
        open_jobs_again,
        collection=selection.collection,
        shards=shards,
        from_originals=from_originals,
        force=config.force,
        owner_ids=selection.owner_ids,
        limit=config.limit,
    )
    transaction(mirror.catalog, reopen, patience=CATALOG_PATIENCE)


def _open_rollout_jobs(
    context: dg.AssetExecutionContext, selection: "Selection", mirror: "Mirror", shards: Sequence[str]
) -> None:
    """Images that were published since a rollout began get its renditions, too.

    Not in runs that new rows wait for: it takes 0.3 s per 20,000 images.
    """
    from cdn_pipeline.catalog.sessions import transaction
    from cdn_pipeline.engine.outages import CATALOG_PATIENCE
    from cdn_pipeline.queue.reopen import open_rollout_jobs
    from cdn_pipeline.queue.states import Stage

    is_quick = selection.before_priority is not None and FRESHNESS_TAG not in context.run.tags
    if is_quick or not {Stage.ENCODE, Stage.PUBLISH} <= selection.stages:
        return
    missing = partial(open_rollout_jobs, collection=selection.collection, shards=shards, owner_ids=selection.owner_ids)
    if opened := transaction(mirror.catalog, missing, patience=CATALOG_PATIENCE):
        context.log.info(f"images that lack the renditions of a rollout: {opened}")


def _refresh(context: dg.AssetExecutionContext, mirror: "Mirror", shards: Sequence[str]) -> None:
    """What a nightly run adds to the queue before it works through it."""
    from cdn_pipeline.catalog.sessions import transaction
    from cdn_pipeline.engine.outages import CATALOG_PATIENCE
    from cdn_pipeline.queue.freshness import open_checks, release_retries, reopen_refused

    def refresh(connection: "sa.Connection") -> list[int]:
        return [work(connection, mirror.collection, shards) for work in (release_retries, reopen_refused, open_checks)]

    released, refused, checks = transaction(mirror.catalog, refresh, patience=CATALOG_PATIENCE)
    context.log.info(
        f"retries released: {released}, pictures to be checked at the source: {checks}, refused ones tried again: "
        f"{refused}"
    )
