"""Delivery as strangers see it: published URLs probed over HTTP, and what is checked of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dagster as dg

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.thresholds import Judgement, judge_first_bytes, judge_urls
from cdn_pipeline.orchestration.assets.images import published_images_spec
from cdn_pipeline.orchestration.config import ProbeConfig
from cdn_pipeline.orchestration.reporting import Metadata, known
from cdn_pipeline.orchestration.resources import CatalogResource

if TYPE_CHECKING:
    from cdn_pipeline.observe.probes import Delivery, Percentiles


@dg.asset(
    # Drawn in the graph, and no more: probes are of whatever is published.
    deps=[dg.AssetDep(published_images_spec, partition_mapping=dg.SpecificPartitionsPartitionMapping([]))],
    group_name="delivery",
    kinds={"http", "postgres"},
    owners=["team:images"],
    tags={"domain": "images", "stage": "observe"},
    description=(
        "A sample of published URLs, half of them published last and the others drawn at random, asked for over "
        "HTTP/1.1 from the machine that runs this: status, bytes, headers, and the time to the first byte, on a new "
        "connection (cold: with DNS, TCP and TLS) and on the open one (warm), and by whether the CDN's cache had the "
        "picture (of cold requests; a dash where no cache tells). Rows in `cdn_delivery_probes`, kept for 30 days.\n\n"
        "Against a server on the same machine the times say nothing of a CDN."
    ),
)
def delivery_probes(config: ProbeConfig, catalog: CatalogResource) -> dg.MaterializeResult[None]:
    """Probes the sample and tells what strangers got."""
    from cdn_pipeline.observe.probes import probe_published

    base_url = catalog.settings.public_base_url
    probed = probe_published(catalog.engine, base_url, sample=config.sample)
    delivery = _latest(catalog) if probed else None
    return dg.MaterializeResult(
        metadata={"URLs probed": probed, "base URL": dg.MetadataValue.url(base_url), **_numbers(delivery)}
    )


@dg.asset_check(
    asset=delivery_probes,
    description=f"At least {thresholds.FIRST_BYTE_SHARE:.0%} of the probed URLs send their first byte within "
    f"{thresholds.FIRST_BYTE_MS} ms on an open connection, as all but the first picture of a page are asked for (at "
    f"least {thresholds.MINIMUM_PROBES} URLs). A warning.\n\nOtherwise: is the cache hit? Is it the way from here?",
)
def urls_answer_within_150_ms(catalog: CatalogResource) -> dg.AssetCheckResult:
    """Judges the warm requests of the latest round."""
    delivery = _latest(catalog)
    if delivery is None:
        return _never_probed()
    judgement = judge_first_bytes(delivery.share_in_time, delivery.warm.n if delivery.warm else 0)
    return _evaluated(judgement, delivery, {"share in time": delivery.share_in_time, **_percentiles(delivery)})


@dg.asset_check(
    asset=delivery_probes,
    description="Every probed URL gives its picture: 200, the very bytes that the catalog has the hash of, their "
    "content type, and headers that let caches keep it. What fails once and not the second time is none.\n\n"
    "Otherwise: the runbook, under `Delivery: broken or slow URLs`.",
)
def no_published_url_is_broken(catalog: CatalogResource) -> dg.AssetCheckResult:
    """Judges the latest round."""
    delivery = _latest(catalog)
    if delivery is None:
        return _never_probed()
    return _evaluated(
        judge_urls(delivery.n, delivery.broken),
        delivery,
        {"URLs probed": delivery.n, "broken": delivery.broken, "samples": list(delivery.samples) or None},
    )


def _latest(catalog: CatalogResource) -> "Delivery | None":
    from cdn_pipeline.observe.probes import latest_delivery

    with catalog.engine.connect() as connection:
        return latest_delivery(connection)


def _never_probed() -> dg.AssetCheckResult:
    words = "no published URL has been probed yet"
    return dg.AssetCheckResult(passed=True, severity=dg.AssetCheckSeverity.WARN, description=words)


def _evaluated(judgement: Judgement, delivery: "Delivery", metadata: Metadata) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.ERROR if judgement.is_error else dg.AssetCheckSeverity.WARN,
        description=f"{delivery.probed_at:%Y-%m-%d %H:%M} UTC: {judgement.words}",
        metadata=known(metadata),
    )


def _numbers(delivery: "Delivery | None") -> Metadata:
    """What the asset's page plots, and the round as a table."""
    if delivery is None:
        return {}
    return known(
        {
            "broken": delivery.broken,
            "share in time": delivery.share_in_time,
            "hit ratio": delivery.hit_ratio,
            **_percentiles(delivery),
            "first byte": dg.MetadataValue.md(_table(delivery)),
        }
    )


def _percentiles(delivery: "Delivery") -> Metadata:
    return {
        f"{name} {percentile} (ms)": round(getattr(found, percentile), 1)
        for name, found in _measured(delivery).items()
        if found is not None
        for percentile in ("p50", "p95", "p99")
    }


def _table(delivery: "Delivery") -> str:
    lines = ["| first byte, ms | n | p50 | p95 | p99 |", "|---|---|---|---|---|"]
    for name, found in _measured(delivery).items():
        cells = "– | – | – | –" if found is None else f"{found.n} | {found.p50:.1f} | {found.p95:.1f} | {found.p99:.1f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _measured(delivery: "Delivery") -> "Mapping[str, Percentiles | None]":
    return {"cold": delivery.cold, "warm": delivery.warm, "HIT": delivery.hit, "MISS": delivery.miss}
