"""Whatever the dashboard and the alert rules ask for, `GET /metrics` serves, with the labels that they use."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, timedelta
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.probes import Probe, draw_targets, write_probes
from cdn_pipeline.observe.stats import compute_hour, write_hour
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import ADMIN, api
from cdn_pipeline_tests.cloudflare.figures import ACCOUNT_ID, asked_for, done, running_figures
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID
from cdn_pipeline_tests.deploy.files import DASHBOARD_FILE, Served, alert_rules, panels, selectors, unserved
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, published, reference, register, see, session, take
from cdn_pipeline_tests.s3 import S3Server, moto_server

__all__ = ["moto_server"]

pytestmark = pytest.mark.skipif(not DASHBOARD_FILE.exists(), reason="installed without the checkout")


def queries() -> Iterator[tuple[str, str]]:
    """(where it stands, the query), of every panel and every rule."""
    for panel in panels():
        yield from ((f"panel {panel['title']}", target["expr"]) for target in panel["targets"])
    yield from ((f"rule {rule['alert']}", rule["expr"]) for rule in alert_rules())


def test_every_query_asks_for_what_is_served(settings: Settings, catalog: sa.Engine, moto_server: S3Server) -> None:
    with session(catalog) as connection:
        register(connection, RUN)
        work_of_an_hour(connection)
        trouble(connection)
    served: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    with api(settings) as laptop, in_production(settings, moto_server) as production:
        for client in (laptop, production):
            asked_by_many(client)
            add_samples(served, client)
    problems = {where: found for where, query in queries() if (found := list(unserved(query, served)))}
    assert problems == {}


def work_of_an_hour(connection: sa.Connection) -> None:
    """Images that were published, one of them at the second attempt, and what is counted and probed of them."""
    see(connection, reference(), reference(image="2"))
    first, second = take(connection)
    settle(connection, RUN, [outcome(second, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)])
    settle(connection, RUN, [replace(published(first), download_ms=30, transcode_ms=60, upload_ms=10)])
    connection.execute(sa.text("UPDATE cdn_image_jobs SET next_attempt_at = now() WHERE status = 'queued'"))
    settle(connection, RUN, [published(job, "y", "B") for job in take(connection)])
    hour = catalog_time(connection).astimezone(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    write_hour(connection, replace(compute_hour(connection, hour), jobs_processed=20, avg_processing_time_ms=100))
    caches = ("hit", "miss")
    targets = draw_targets(connection, len(caches))
    probes = [
        Probe(target.path, None, 200, 20.0, 5.0, cache, "hit") for target, cache in zip(targets, caches, strict=True)
    ]
    assert write_probes(connection, probes) == len(caches)


def trouble(connection: sa.Connection) -> None:
    """One image that failed, one that is due at a host that is left alone, and sources that were read."""
    see(connection, reference(image="3"))
    settle(connection, RUN, [outcome(take(connection)[0], Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])
    see(connection, reference(image="4"))
    connection.execute(sa.text(_SHUT_HOST))
    connection.execute(sa.text(_FULL_SCAN))
    beat(connection, "due_images_sensor")


_SHUT_HOST = """
    INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
    SELECT DISTINCT host, 5, 'source_error', now() - interval '10 minutes', now() + interval '1 minute'
    FROM cdn_image_jobs WHERE status = 'queued'
"""
_FULL_SCAN = """
    INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, recent_rows, fully_scanned_at)
    VALUES ('instagram', '00', now(), 0, now())
"""


@contextmanager
def in_production(settings: Settings, s3: S3Server) -> Iterator[httpx.Client]:
    """The API on buckets, without a token for admins, with Cloudflare's figures."""
    renditions, originals = s3.new_bucket(), s3.new_bucket()
    with running_figures() as figures:
        figures.requests = [asked_for(98, "hit", timedelta(hours=2)) | {"host": "127.0.0.1"}]
        figures.operations = {renditions: [done("PutObject", 20), done("GetObject", 5)], originals: []}
        more = {
            "object_store_url": f"s3://{renditions}",
            "originals_store_url": f"s3://{originals}",
            "r2_endpoint_url": s3.endpoint_url,
            "r2_access_key_id": s3.access_key_id,
            "r2_secret_access_key": s3.secret_access_key,
            "cf_account_id": ACCOUNT_ID,
            "cf_api_token": TOKEN,
            "cf_zone_id": ZONE_ID,
            "cf_api_url": figures.api_url,
            "admin_api_token": None,
        }
        with api(settings, **more) as client:
            patience = time.monotonic() + 60  # for what Cloudflare is asked in the background
            while "cdn_pipeline_cache_hit_ratio " not in client.get("/metrics").text:
                assert time.monotonic() < patience
                time.sleep(0.1)
            yield client


def asked_by_many(client: httpx.Client) -> None:
    """Requests for pictures, and one that fails where admins have no token."""
    assert client.get(f"/api/v1/creators/ig/{uuid4()}/media").status_code in (200, 404)
    client.get("/th/nothing.webp")
    client.get("/api/v1/admin/cdn/metrics", headers=ADMIN)


def add_samples(served: defaultdict[str, list[dict[str, str]]], client: httpx.Client) -> None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            served[sample.name].append(dict(sample.labels))


# -- the tests' own eyes --

SERVED: Served = {"cdn_pipeline_queue_jobs": [{"priority": "2", "state": "due"}]}


@pytest.mark.parametrize(
    ("query", "missing"),
    [
        ('sum by (state) (max without (instance) (cdn_pipeline_queue_jobs{job="$job",state="due"})) > 1e3', []),
        ("rate(cdn_pipeline_queue_jobs[5m]) - cdn_pipeline_queue_jobs offset 1w", []),
        ('absent(up{job="cdn_pipeline"})', []),
        ("cdn_pipeline_queue_job > 0", ["cdn_pipeline_queue_job"]),
        ("queue_jobs or cdn_pipeline_queue_jobs", ["queue_jobs"]),
        ('cdn_pipeline_queue_jobs{state=~"held|kept"}', ["cdn_pipeline_queue_jobs{state=~held|kept}"]),
        ('cdn_pipeline_queue_jobs{status="due"}', ["cdn_pipeline_queue_jobs{status=due}"]),
        ("sum by (prioritiy) (cdn_pipeline_queue_jobs)", ["prioritiy"]),
    ],
)
def test_what_is_not_served_is_noticed(query: str, missing: list[str]) -> None:
    assert list(unserved(query, SERVED)) == missing


def test_every_query_names_a_metric() -> None:
    assert all(selectors(query) for _, query in queries())
