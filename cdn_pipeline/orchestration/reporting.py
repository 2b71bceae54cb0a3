"""How a finished shard reaches Dagster: one materialization per asset and one evaluation per check, yielded at once.

Yielded, not logged: a yielded event is in Dagster's storage before the generator goes on, so a run that is killed keeps
the shards it had finished; and a failed blocking check that is only logged does not fail the run.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

# Private, and the only such import: without the target a partition's check counts as never evaluated in the UI.
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

from cdn_pipeline.observe.thresholds import Judgement

if TYPE_CHECKING:
    from cdn_pipeline.engine.tally import Samples, Tally

Metadata = Mapping[str, Any]


def materialized(key: dg.AssetKey, shard: str, metadata: Metadata) -> dg.AssetMaterialization:
    """The materialization of one asset's shard."""
    return dg.AssetMaterialization(key, partition=shard, metadata=known(metadata))


def evaluated(
    context: dg.AssetExecutionContext, check: dg.AssetCheckKey, judgement: Judgement, metadata: Metadata, *, shard: str
) -> dg.AssetCheckEvaluation:
    """The evaluation of a check that informs about one shard, whose materialization was yielded before."""
    return dg.AssetCheckEvaluation(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=judgement.words,
        metadata=known(metadata),
        partition=shard,
        target_materialization_data=_latest_materialization(context, check.asset_key, shard),
    )


def evaluated_run(check: dg.AssetCheckKey, judgement: Judgement, metadata: Metadata) -> dg.AssetCheckEvaluation:
    """The evaluation of a blocking check that judges the run as a whole; an error fails the run."""
    severity = dg.AssetCheckSeverity.ERROR if judgement.is_error else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckEvaluation(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=judgement.passed,
        severity=severity,
        blocking=True,
        description=judgement.words,
        metadata=known(metadata),
    )


def _latest_materialization(
    context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard]), limit=1
    ).records
    if not records:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        run_id=records[0].run_id, storage_id=records[0].storage_id, timestamp=records[0].timestamp
    )


def known(metadata: Metadata) -> dict[str, Any]:
    """The entries that have a value."""
    return {name: value for name, value in metadata.items() if value is not None}


# -- numbers of a tally, per asset --


def original_numbers(tally: "Tally") -> Metadata:
    """What `original_images` says of a shard."""
    return {
        "claimed images": tally.images,
        "downloaded": tally.downloaded,
        "unchanged": tally.unchanged,
        "bytes in": tally.bytes_in,
        **failure_numbers(tally),
        **_percentiles("download", tally.download_ms),
    }


def rendition_numbers(tally: "Tally") -> Metadata:
    """What `image_renditions` says of a shard."""
    return {
        "renditions": tally.renditions,
        "bytes out": tally.bytes_out,
        **_percentiles("transcode", tally.transcode_ms),
    }


def publication_numbers(tally: "Tally", images_per_second: float | None) -> Metadata:
    """What `published_images` says of a shard; the speed is the run's, whose shards share workers and connections.

    A shard in which the run completed nothing has no part in that speed, and does not tell it.
    """
    return {
        "published": tally.published,
        "unchanged": tally.unchanged,
        "success rate": _rounded(tally.success_rate, 4),
        "images per second (run)": _rounded(images_per_second, 1) if tally.completed else None,
        **failure_numbers(tally),
        **_percentiles("upload", tally.upload_ms),
    }


def run_numbers(tally: "Tally") -> Metadata:
    """What the checks of a run say."""
    return {
        "claimed images": tally.images,
        **publication_numbers(tally, tally.images_per_second),
        "seconds": round(tally.seconds, 2),
    }


def failure_numbers(tally: "Tally") -> Metadata:
    """Images by the kind of their last failure, and attempts by kind where those are more."""
    numbers: dict[str, Any] = {f"failed: {kind}": count for kind, count in sorted(tally.failures.items()) if count}
    retried = {kind.value: count for kind, count in sorted(tally.attempts_failed.items())}
    if retried:
        numbers["failed attempts"] = dg.MetadataValue.json(retried)
    return numbers


def _percentiles(stage: str, samples: "Samples") -> Metadata:
    return {f"{stage} p50 (ms)": samples.percentile(50), f"{stage} p95 (ms)": samples.percentile(95)}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
