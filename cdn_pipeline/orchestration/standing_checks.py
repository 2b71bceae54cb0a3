"""Checks of how things stand, whatever any run did: every hour, or at any time with "Execute" in the UI.

None of them blocks a run. Each description says what to do when the check does not pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.thresholds import Judgement
from cdn_pipeline.observe.times import span
from cdn_pipeline.orchestration.assets.images import image_renditions_spec, original_images_spec, published_images_spec
from cdn_pipeline.orchestration.assets.sources import source_images
from cdn_pipeline.orchestration.partitions import image_shards
from cdn_pipeline.orchestration.reporting import Metadata, known
from cdn_pipeline.orchestration.resources import CatalogResource

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cdn_pipeline.observe.standing import Watch

_Verdict = tuple[Judgement, Metadata]


@dataclass(frozen=True)
class _Standing:
    """What the checks judge."""

    connection: "sa.Connection"
    instance: dg.DagsterInstance

    @cached_property
    def watch(self) -> "Watch":
        """Looked up once, for the two checks that need it."""
        from cdn_pipeline.observe.standing import watch

        return watch(self.connection, INSTAGRAM)


def _images_lost(standing: _Standing) -> _Verdict:
    found = standing.watch
    return thresholds.judge_lost(found.lost, found.lost_lately), {
        "lost": found.lost,
        f"lost in the last {span(thresholds.LOST_LATELY)}": found.lost_lately,
        "samples": list(found.samples) or None,
    }


def _arrived_dead(standing: _Standing) -> _Verdict:
    dead = standing.watch.arrived_dead
    words = f"images that had expired before we saw them: {dead}"
    return Judgement(True, False, words), {"arrived dead": dead}


def _deadlines(standing: _Standing) -> _Verdict:
    from cdn_pipeline.observe.feasibility import feasibility

    found = feasibility(standing.connection, INSTAGRAM)
    return thresholds.judge_deadlines(found.at_risk, found.words), {
        "waiting": found.waiting,
        "expire before we reach them": found.at_risk,
        "of these on hold": found.at_risk_on_hold,
        "images per second": found.rate,
        "first expires": found.first_at_risk and dg.MetadataValue.timestamp(found.first_at_risk),
    }


def _oldest_due(standing: _Standing) -> _Verdict:
    from cdn_pipeline.observe.standing import oldest_due

    found = oldest_due(standing.connection, INSTAGRAM)
    minutes = None if found.age is None else round(found.age.total_seconds() / 60, 1)
    numbers = {"due": found.due, "oldest (minutes)": minutes, "shard of the oldest": found.shard}
    return thresholds.judge_oldest_due(found.age), numbers


def _breakers(standing: _Standing) -> _Verdict:
    from cdn_pipeline.observe.hosts import shut_hosts

    found = shut_hosts(standing.connection, INSTAGRAM)
    return thresholds.judge_breakers([host.open_for for host in found]), {
        "open breakers": len(found),
        "images behind them": sum(host.images for host in found),
        "hosts": [host.words for host in found] or None,
    }


def _erasures(standing: _Standing) -> _Verdict:
    from cdn_pipeline.observe.standing import MAX_SAMPLES, unfinished_erasures

    found = unfinished_erasures(standing.connection, INSTAGRAM, thresholds.ERASURE_UNFINISHED_ERROR)
    return thresholds.judge_erasures(found.count, len(found.old)), {
        "unfinished": found.count,
        "old": list(found.old[:MAX_SAMPLES]) or None,
    }


def _scans(standing: _Standing) -> _Verdict:
    from cdn_pipeline.observe.standing import scans

    found = scans(standing.connection, INSTAGRAM, thresholds.UNRENEWED_ERROR)
    return thresholds.judge_scans(found.begun, len(found.stale)), {
        "stale": len(found.stale) if found.begun else None,
        "stale shards": list(found.stale) if found.begun else None,
        "oldest full scan": found.oldest and dg.MetadataValue.timestamp(found.oldest),
    }


def _failed_shards(standing: _Standing) -> _Verdict:
    """What Dagster shows as failed: the last run of the shard did not materialize it."""
    from cdn_pipeline.observe.standing import MAX_SAMPLES

    shards = image_shards.get_partition_keys()
    failed = [
        f"{key.to_user_string()} {shard}"
        for key in (source_images.key, original_images_spec.key, image_renditions_spec.key, published_images_spec.key)
        for shard, status in (standing.instance.get_status_by_partition(key, shards, image_shards) or {}).items()
        if status is not None and status.name == "FAILED"
    ]
    return thresholds.judge_failed_shards(len(failed)), {
        "failed": len(failed),
        "failed shards": failed[:MAX_SAMPLES] or None,
    }


class _Check(NamedTuple):
    judge: Callable[[_Standing], _Verdict]
    description: str


# Those that an alert has a rule of its own for.
NO_IMAGE_LOST = "no_image_lost_on_our_watch"
DEADLINES_CAN_BE_KEPT = "deadlines_can_be_kept"
NO_HOST_LEFT_ALONE = "no_host_left_alone_for_long"

_CHECKS = {
    NO_IMAGE_LOST: _Check(
        _images_lost,
        "No image's URL was alive when we first saw it and expired before we had the original, unless the source had "
        f"refused it. An error for {span(thresholds.LOST_LATELY)}, then a warning: a picture that its source shows no "
        "more cannot be had any more.\n\nOtherwise: `cdn-pipeline explain ID` tells why it waited. Have its profile "
        "fetched again: a fresh URL heals the image.",
    ),
    "images_arrived_dead": _Check(
        _arrived_dead,
        "Images whose every URL had expired before we saw it. Informs only: they are not ours to answer for.\n\n"
        "If they become many: whoever writes the source rows writes them days after the profile was fetched.",
    ),
    DEADLINES_CAN_BE_KEPT: _Check(
        _deadlines,
        "At the present rate, every waiting image is reached before its URL expires.\n\nOtherwise: let more runs or "
        "machines work at once, put on hold what can wait (`cdn-pipeline queue hold`), and let go what expires on "
        "hold (`cdn-pipeline queue restore`).",
    ),
    "no_due_image_left_waiting": _Check(
        _oldest_due,
        f"No image (backfills and rollouts apart) has been due for more than {span(thresholds.OLDEST_DUE_WARNING)}; "
        f"an error after {span(thresholds.OLDEST_DUE_ERROR)}.\n\nOtherwise: is the sensor on, does a run hang, is "
        "Dagster's run queue full? `cdn-pipeline status` shows the queue and the runs.",
    ),
    NO_HOST_LEFT_ALONE: _Check(
        _breakers,
        f"No host's breaker has been open for more than {span(thresholds.BREAKER_OPEN_WARNING)}.\n\nOtherwise: images "
        "of the named hosts wait, untouched, and one at a time finds out whether the host answers again. Is it the "
        "host, or this machine's way to it? The kind of failure says where to look.",
    ),
    "no_erasure_left_unfinished": _Check(
        _erasures,
        f"No erasure has been open, or waiting for the CDN's purge, for more than "
        f"{span(thresholds.ERASURE_UNFINISHED_ERROR)}.\n\nOtherwise: `cdn-pipeline erase` shows why, and "
        "`cdn-pipeline erase --resume` finishes them. A purge needs CF_API_TOKEN and CF_ZONE_ID.",
    ),
    "every_shard_was_scanned_within_a_day": _Check(
        _scans,
        "The source rows of every shard were read in full last night.\n\nOtherwise: is the schedule of "
        "`nightly_freshness` on, did its run fail? Materialize source_images for the shards that are named.",
    ),
    "no_shard_left_failed": _Check(
        _failed_shards,
        "No shard of the image assets is failed in Dagster's eyes.\n\nOtherwise: look at the error of its last run and "
        "materialize the failed shards again; what is due in them is taken up by the next run in any case.",
    ),
}


_SPECS = {
    name: dg.AssetCheckSpec(name, asset=published_images_spec.key, description=check.description)
    for name, check in _CHECKS.items()
}


@dg.op(out={name: dg.Out(dg.Nothing, is_required=False) for name in _SPECS})
def judge_standing(context: dg.OpExecutionContext, catalog: CatalogResource) -> Iterator[dg.AssetCheckResult]:
    """Judges what the catalog and Dagster say now; needs neither source nor stores."""
    selected = {key.name for key in context.selected_asset_check_keys}
    with catalog.engine.connect() as connection:
        standing = _Standing(connection, context.instance)
        for name, check in _CHECKS.items():
            if name in selected:
                judgement, metadata = check.judge(standing)
                yield dg.AssetCheckResult(
                    check_name=name,
                    passed=judgement.passed,
                    severity=dg.AssetCheckSeverity.ERROR if judgement.is_error else dg.AssetCheckSeverity.WARN,
                    description=judgement.words,
                    metadata=known(metadata),
                )


# Not `@dg.multi_asset_check`, which makes an input of the asset: in a run that mirrors images as well, the checks would
# be skipped with it, because `mirrored_images` yields events and no output.
standing_checks = dg.AssetChecksDefinition.create(
    keys_by_input_name={}, node_def=judge_standing, check_specs_by_output_name=_SPECS, can_subset=True
)
