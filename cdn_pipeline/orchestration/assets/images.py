"""Mirroring: one stream through download, transcode and publication, reported as three assets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import dagster as dg

from cdn_pipeline.observe.thresholds import Judgement, judge_not_in_rate, judge_objects, judge_success_rate
from cdn_pipeline.orchestration.assets.openings import open_jobs
from cdn_pipeline.orchestration.assets.sources import source_images
from cdn_pipeline.orchestration.checks import (
    OBJECTS_INSPECTED,
    few_images_gone_or_expired,
    mirror_check_specs,
    published_objects_in_store,
    renewed_every_night,
    shard_success_rate,
    success_rate,
)
from cdn_pipeline.orchestration.config import FRESHNESS_TAG, MirrorConfig
from cdn_pipeline.orchestration.partitions import image_shards, run_shards, shard_backfill_policy
from cdn_pipeline.orchestration.reporting import (
    Metadata,
    evaluated,
    evaluated_run,
    failure_numbers,
    materialized,
    original_numbers,
    publication_numbers,
    rendition_numbers,
    run_numbers,
)
from cdn_pipeline.orchestration.resources import MirrorResource
from cdn_pipeline.orchestration.run_requests import Lane

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.engine.mirror import Mirror
    from cdn_pipeline.engine.stream import ShardReport
    from cdn_pipeline.engine.tally import Tally
    from cdn_pipeline.observe.samples import SamplePicture
    from cdn_pipeline.queue.due import Selection

Events = Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]

_T = TypeVar("_T")

SAMPLE_PICTURES = 4
SHOWN_IN_PLACE = 1000  # characters: longer Markdown hides behind a link in Dagster's UI


def _spec(
    name: str, upstream: dg.AssetsDefinition | dg.AssetSpec, kinds: set[str], stage: str, description: str
) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        deps=[upstream],
        group_name="images",
        kinds=kinds,
        owners=["team:images"],
        tags={"domain": "images", "stage": stage},
        freshness_policy=renewed_every_night,
        skippable=True,
        partitions_def=image_shards,
        description=description,
    )


original_images_spec = _spec(
    "original_images",
    source_images,
    {"http", "s3"},
    "download",
    "The bytes as downloaded, kept in the private store under their SHA-256.\n\n"
    "Due images are downloaded before their URL expires, the earliest deadline first. The same bytes as before are no "
    "work for the assets downstream.",
)

image_renditions_spec = _spec(
    "image_renditions",
    original_images_spec,
    {"pillow", "s3"},
    "encode",
    "WebP renditions that fit inside 256×256 and 512×512, and those of recipes that are rolled out, stored under keys "
    "named by the hash of their own bytes.\n\n"
    "Materialize this and `published_images` without `original_images` to encode again from stored originals: images "
    "whose renditions are not of the present recipe version, or all of them with `force`.",
)

published_images_spec = _spec(
    "published_images",
    image_renditions_spec,
    {"cloudflare", "postgres"},
    "publish",
    "Renditions that are verified in the store and visible: all sizes of an image become current in one transaction "
    "(view `cdn_image_urls`).\n\nA failed update keeps serving the last good rendition; superseded ones stay for the "
    "grace period.",
)

_SPECS = (original_images_spec, image_renditions_spec, published_images_spec)


@dg.multi_asset(
    name="mirrored_images",
    specs=_SPECS,
    check_specs=mirror_check_specs(published_images_spec.key),
    can_subset=True,
    backfill_policy=shard_backfill_policy,
)
def mirrored_images(context: dg.AssetExecutionContext, config: MirrorConfig, mirror: MirrorResource) -> Events:
    """Works through the due jobs of the run's shards; a shard is reported as soon as it is finished."""
    from cdn_pipeline.engine.tally import Tally

    if not context.selected_asset_keys:
        yield from _check_events(context, mirror.mirror)
        return
    shards = run_shards(context)
    selection = _selection(context, config, mirror.mirror)
    open_jobs(context, config, mirror.mirror, selection, shards)
    tallies: list[Tally] = []
    for report in _reports(context, mirror.mirror, selection, config, shards):
        tallies.append(report.tally)
        yield from _shard_events(context, mirror.mirror, report)
    yield from _run_events(context, mirror.mirror, Tally.total(tallies))


def _selection(context: dg.AssetExecutionContext, config: MirrorConfig, mirror: "Mirror") -> "Selection":
    from cdn_pipeline.queue.due import Selection
    from cdn_pipeline.queue.states import Stage

    stages = {
        original_images_spec.key: Stage.DOWNLOAD,
        image_renditions_spec.key: Stage.ENCODE,
        published_images_spec.key: Stage.PUBLISH,
    }
    return Selection(
        collection=mirror.collection,
        stages=frozenset(stages[key] for key in context.selected_asset_keys),
        owner_ids=tuple(config.owner_ids) or None,
        before_priority=_leaves_from(context.run.tags),
    )


def _leaves_from(tags: Mapping[str, str]) -> int | None:
    """The first priority that is not the run's: a new row must not wait behind bulk work, nor a night's check."""
    from cdn_pipeline.collections import BACKFILL_PRIORITY, REENCODE_PRIORITY

    if FRESHNESS_TAG in tags:
        return REENCODE_PRIORITY
    return BACKFILL_PRIORITY if tags.get("lane") in (Lane.URGENT, Lane.REGULAR) else None


def _reports(
    context: dg.AssetExecutionContext,
    mirror: "Mirror",
    selection: "Selection",
    config: MirrorConfig,
    shards: Sequence[str],
) -> Iterator["ShardReport"]:
    """The finished shards; progress goes to the log, a line every few seconds."""
    from cdn_pipeline.engine.mirror import Progress
    from cdn_pipeline.queue.due import count_due
    from cdn_pipeline.queue.leases import release_dead_leases

    _in_catalog(mirror, lambda connection: release_dead_leases(connection, shards))
    due = _in_catalog(mirror, lambda connection: count_due(connection, selection, shards))
    if config.limit is not None:
        due = min(due, config.limit)
    context.log.info(f"{due} images to do in {len(shards)} shards")
    for report in mirror.stream(shards, selection, limit=config.limit):
        if not isinstance(report, Progress):
            yield report
            continue
        tally = report.tally
        context.log.info(
            f"{tally.images} of {due} images, {tally.images_per_second or 0:.1f}/s, {tally.failed} failing, "
            f"{len(shards) - report.open_shards} of {len(shards)} shards finished"
        )


def _shard_events(context: dg.AssetExecutionContext, mirror: "Mirror", report: "ShardReport") -> Events:
    numbers = {
        original_images_spec.key: original_numbers(report.tally),
        image_renditions_spec.key: rendition_numbers(report.tally),
    }
    if published_images_spec.key in context.selected_asset_keys:
        published = publication_numbers(report.tally, report.images_per_second)
        state, pictures = _standing(mirror, report.shard)
        numbers[published_images_spec.key] = {**state, **published, "sample pictures": pictures}
    for key in (spec.key for spec in _SPECS if spec.key in context.selected_asset_keys):
        yield materialized(key, report.shard, numbers[key])
    check = dg.AssetCheckKey(published_images_spec.key, shard_success_rate)
    if check in context.selected_asset_check_keys:
        judgement = judge_success_rate(report.tally.completed, report.tally.failed)
        yield evaluated(context, check, judgement, failure_numbers(report.tally), shard=report.shard)


def _standing(mirror: "Mirror", shard: str) -> tuple[Metadata, dg.MarkdownMetadataValue | None]:
    """What the shard has, whatever this run did, in numbers and pictures."""
    from cdn_pipeline.observe.samples import sample_pictures, shard_state

    size_name = mirror.collection.recipe.sizes[0].name
    state, pictures = _in_catalog(
        mirror,
        lambda connection: (
            shard_state(connection, shard),
            sample_pictures(connection, shard, size_name, SAMPLE_PICTURES),
        ),
    )
    numbers = {"images in the shard": state.images, "published in the shard": state.published}
    return numbers, _picture_table(pictures)


def _picture_table(pictures: Sequence["SamplePicture"]) -> dg.MarkdownMetadataValue | None:
    """Dagster renders Markdown's images, from any host, and no HTML."""
    if not pictures:
        return None
    table = "| picture | image | pixels | bytes |\n|---|---|---|--:|"
    for picture in pictures:
        row = (
            f"\n| ![]({picture.url}) | {picture.source_type} {picture.media_id} "
            f"| {picture.width}×{picture.height} | {picture.file_size:,} |"
        )
        if len(table) + len(row) < SHOWN_IN_PLACE:
            table += row
    return dg.MetadataValue.md(table)


def _run_events(context: dg.AssetExecutionContext, mirror: "Mirror", total: "Tally") -> Events:
    numbers = {**run_numbers(total), **_deadlines(mirror), **_hosts_left_alone(context, mirror)}
    judges: dict[str, Callable[[], tuple[Judgement, Metadata]]] = {
        success_rate: lambda: (judge_success_rate(total.completed, total.failed), numbers),
        few_images_gone_or_expired: lambda: (judge_not_in_rate(total.not_in_rate, total.images), numbers),
        published_objects_in_store: lambda: _inspect(mirror),
    }
    for name, judge in judges.items():
        check = dg.AssetCheckKey(published_images_spec.key, name)
        if check in context.selected_asset_check_keys:
            judgement, metadata = judge()
            context.log.info(f"{name}: {judgement.words}")
            yield evaluated_run(check, judgement, metadata)


def _hosts_left_alone(context: dg.AssetExecutionContext, mirror: "Mirror") -> Metadata:
    """The hosts whose images this run has left due, because their breaker is open."""
    from cdn_pipeline.observe.hosts import shut_hosts

    found = _in_catalog(mirror, lambda connection: shut_hosts(connection, mirror.collection))
    for host in found:
        context.log.warning(host.words)
    return {"hosts left alone": [host.words for host in found] or None}


def _deadlines(mirror: "Mirror") -> Metadata:
    from cdn_pipeline.observe.feasibility import feasibility

    found = _in_catalog(mirror, lambda connection: feasibility(connection, mirror.collection))
    return {"images waiting": found.waiting, "images that expire before we reach them": found.at_risk}


def _in_catalog(mirror: "Mirror", work: Callable[["sa.Connection"], _T]) -> _T:
    """As patient as the stream: a restart must not fail a run that has done its work."""
    from cdn_pipeline.catalog.sessions import transaction
    from cdn_pipeline.engine.outages import CATALOG_PATIENCE

    return transaction(mirror.catalog, work, patience=CATALOG_PATIENCE)


def _check_events(context: dg.AssetExecutionContext, mirror: "Mirror") -> Events:
    """Checks that were asked for alone, with "Execute" in the UI: only what is in the store can be told without a run.

    Raises:
        Failure: a check was asked for that judges what a run did.
    """
    inspection = dg.AssetCheckKey(published_images_spec.key, published_objects_in_store)
    if inspection in context.selected_asset_check_keys:
        yield evaluated_run(inspection, *_inspect(mirror))
    others = sorted(check.name for check in context.selected_asset_check_keys - {inspection})
    if others:
        raise dg.Failure(f"{', '.join(others)}: judged when images are processed; materialize published_images instead")


def _inspect(mirror: "Mirror") -> tuple[Judgement, Metadata]:
    from cdn_pipeline.store.objects import StoreUnavailable
    from cdn_pipeline.upkeep.stores import Part
    from cdn_pipeline.upkeep.verify import Verification

    stores = {Part.RENDITIONS: mirror.objects}
    try:
        *_, verified = Verification(mirror.catalog, mirror.collection, stores, sample=OBJECTS_INSPECTED).run()
    except StoreUnavailable as error:  # says nothing about the objects: what the run did stands
        return Judgement(False, is_error=False, words=f"not inspected: {error}"), {"inspected": 0}
    judgement = judge_objects(verified.looked_at, verified.wrong)
    return judgement, {"inspected": verified.looked_at, "missing": [finding.reference for finding in verified.samples]}
