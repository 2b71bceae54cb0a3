"""The CDN: whether strangers get what the store holds."""

import asyncio

import httpx

from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning
from cdn_pipeline.observe.probes import Problem, Target, draw_targets, probe_targets

ABSENT = ".check/absent"  # nobody puts it

_SECONDS = 5.0

_CURES = {
    Problem.STATUS: "Is the custom domain this bucket's, and does no rule of the zone stand in the way?",
    Problem.BYTES: "`cdn-pipeline verify` says whether the store is right; Polish and Mirage re-encode on the way.",
    Problem.CONTENT_TYPE: "Look for a Cache Rule or transform rule that changes headers under /th/.",
    Problem.CACHE_CONTROL: "Look for a Cache Rule or transform rule that changes headers under /th/.",
}


def look_at_cdn(deployment: Deployment) -> Finding:
    """Whether it answers, and gives a published picture as it should, if there is one."""
    base_url = deployment.settings.public_base_url
    try:
        httpx.head(f"{base_url}/{ABSENT}", timeout=_SECONDS, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _silent(deployment, f"{base_url} does not answer: {error or type(error).__name__}")
    with deployment.catalog.connect() as connection:
        targets = draw_targets(connection, 1)
    return (
        _served(base_url, targets[0]) if targets else ok(f"{base_url} answers; nothing is published yet to ask it for")
    )


def _silent(deployment: Deployment, words: str) -> Finding:
    if deployment.settings.objects_url.startswith("file:"):
        return warning(words, "Pictures of a folder store are served by `cdn-pipeline serve` (make serve): start it.")
    return failed(words, "Check CDN_BASE_URL: its DNS, its certificate, and the bucket's custom domain.")


def _served(base_url: str, target: Target) -> Finding:
    [probe] = asyncio.run(probe_targets(base_url, [target]))
    if probe.problem is None:
        return ok(f"{base_url} serves {target.path}")
    words = f"{base_url}{target.path}: {probe.problem}{f' ({probe.status})' if probe.status else ''}"
    return failed(
        words, _CURES.get(probe.problem, "Ask for it again; docs/runbook.md, “Delivery”, has what it can be.")
    )
