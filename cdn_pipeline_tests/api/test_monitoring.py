"""The documents that dashboards read: their exact keys, and their numbers."""

from datetime import UTC, timedelta

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import HourStats, write_hour
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import ADMIN, api
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    outcome,
    published,
    reference,
    rendition,
    see,
    take,
)


def three_done_one_failed_one_queued(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number)) for number in range(4)))
    *good, bad = take(connection)
    settle(connection, RUN, [published(job) for job in good])
    settle(connection, RUN, [outcome(bad, Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    see(connection, reference(image="5", source_type="post_thumbnail"))


# -- the dashboard --


def test_the_dashboard_has_the_keys_that_were_agreed_on(client: httpx.Client, connection: sa.Connection) -> None:
    three_done_one_failed_one_queued(connection)
    document = client.get("/api/v1/cdn/metrics").json()
    assert {group: set(figures) for group, figures in document.items()} == {
        "processing_metrics": {
            "queue_depth",
            "processing_rate_per_hour",
            "success_rate_24h",
            "average_processing_time_ms",
            "failed_jobs_24h",
        },
        "storage_metrics": {"total_assets", "storage_used_gb", "monthly_requests", "cache_hit_ratio"},
        "performance_metrics": {
            "avg_download_time_ms",
            "avg_upload_time_ms",
            "p95_processing_time_ms",
            "worker_utilization",
        },
        "error_analysis": {"top_error_types", "retry_success_rate", "source_url_failures"},
    }
    processing = document["processing_metrics"]
    assert (processing["queue_depth"], processing["processing_rate_per_hour"], processing["failed_jobs_24h"]) == (
        1,
        4,
        1,
    )
    assert processing["success_rate_24h"] == 100.0  # what is gone at its source is nobody's failure
    assert document["storage_metrics"]["total_assets"] == 5
    assert document["storage_metrics"]["monthly_requests"] is None  # Cloudflare is not configured
    (error,) = document["error_analysis"]["top_error_types"]
    assert error == {"error": "source_gone", "count": 1, "advice": FailureKind.SOURCE_GONE.advice}
    assert document["error_analysis"]["source_url_failures"] == 25.0


def test_of_an_empty_catalog_nothing_is_invented(client: httpx.Client) -> None:
    document = client.get("/api/v1/cdn/metrics").json()
    assert document["processing_metrics"]["success_rate_24h"] is None
    assert document["performance_metrics"]["p95_processing_time_ms"] is None
    assert document["error_analysis"]["retry_success_rate"] is None
    assert document["storage_metrics"]["storage_used_gb"] == 0


# -- the queue --


def test_the_queue_is_told_by_priority_with_what_is_on_hold(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference(), reference(image="2"))
    take(connection)
    see(connection, reference(image="3", source_type="post_thumbnail"))
    hold_queue(connection, INSTAGRAM)
    see(connection, reference(image="4", source_type="post_thumbnail"))
    document = client.get("/api/v1/cdn/queue/status").json()
    assert (document["queue_size"], document["processing_jobs"], document["due"], document["held"]) == (3, 2, 1, 1)
    avatars, posts = document["priorities"]
    assert (avatars["priority"], avatars["in_hand"], avatars["due"]) == (2, 2, 0)
    assert (posts["priority"], posts["held"], posts["due"]) == (4, 1, 1)
    assert document["circuit_breaker_open"] is False


def test_a_host_that_is_left_alone_is_told(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(
        sa.text("""
            INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
            SELECT host, 5, 'source_error', now() - interval '10 minutes', now() + interval '1 minute'
            FROM cdn_image_jobs
        """)
    )
    document = client.get("/api/v1/cdn/queue/status").json()
    assert document["circuit_breaker_open"] is True
    (breaker,) = document["circuit_breakers"]
    assert (breaker["host"], breaker["failure"], breaker["images"]) == ("cdn.example", "source_error", 1)


def test_the_whole_is_told_in_one_percentage(client: httpx.Client, connection: sa.Connection) -> None:
    three_done_one_failed_one_queued(connection)
    document = client.get("/api/v1/cdn/processing-status").json()
    assert (document["total_assets"], document["completed_assets"], document["completion_percentage"]) == (5, 3, 60.0)
    assert document["queued"] is True
    assert document["by_status"]["failed"] == 1
    assert document["images_lost"] == 0


# -- past hours --


def test_past_hours_come_with_a_trend_and_advice_for_what_stands_out(
    client: httpx.Client, connection: sa.Connection
) -> None:
    start = catalog_time(connection).astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    for ago, processed in ((1, 100), (2, 50)):
        moment = start - timedelta(hours=ago)
        counted = HourStats(moment.date(), moment.hour, processed, 10, 80, 40, 20, 1, 1, {"image_corrupt": 10}, 5, 50)
        write_hour(connection, counted)
    document = client.get("/api/v1/cdn/statistics", params={"hours": 1}).json()
    (hour,) = document["hours"]
    assert (hour["jobs_processed"], hour["success_rate"]) == (100, 90.0)
    assert document["totals"]["jobs_processed"] == 100
    assert document["trends"]["jobs_processed"] == {"value": 100, "before": 50, "change_percent": 100.0}
    assert document["trends"]["success_rate"]["before"] == 80.0
    (advice,) = [each for each in document["recommendations"] if each["subject"] == "image_corrupt"]
    assert advice["advice"] == FailureKind.IMAGE_CORRUPT.advice
    assert advice["runbook"] == "docs/runbook.md#failure-kinds"


def test_a_kind_of_failure_that_only_another_version_knows_is_told_by_its_name(
    client: httpx.Client, connection: sa.Connection
) -> None:
    three_done_one_failed_one_queued(connection)
    hour = (catalog_time(connection) - timedelta(hours=1)).astimezone(UTC)
    kinds = {"retired_kind": 5}
    write_hour(connection, HourStats(hour.date(), hour.hour, 10, 5, 90, 40, 20, 9_000, 100, kinds, 6, 50))
    for table in ("cdn_image_jobs", "cdn_image_assets"):
        connection.execute(sa.text(f"UPDATE {table} SET failure_kind = 'retired_kind' WHERE failure_kind IS NOT NULL"))
    (advice,) = client.get("/api/v1/cdn/statistics").json()["recommendations"]
    assert (advice["subject"], advice["advice"]) == ("retired_kind", None)
    (error,) = client.get("/api/v1/cdn/metrics").json()["error_analysis"]["top_error_types"]
    assert error == {"error": "retired_kind", "count": 1, "advice": None}
    metrics = client.get("/api/v1/admin/cdn/metrics", headers=ADMIN).json()
    assert [(line["kind"], line["advice"]) for line in metrics["failures"]] == [("retired_kind", None)]
    page = client.get("/api/v1/admin/cdn/failed-jobs", headers=ADMIN).json()
    assert [job["kind"] for job in page["jobs"]] == ["retired_kind"]
    assert page["advice"] == {}
    assert 'kind="retired_kind"' in client.get("/metrics").text


@pytest.mark.parametrize("hours", ["0", "2161", "x"])
def test_statistics_reach_as_far_as_jobs_are_kept(client: httpx.Client, hours: str) -> None:
    assert client.get("/api/v1/cdn/statistics", params={"hours": hours}).status_code == 422


# -- Prometheus --


def samples(client: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_prometheus_is_told_everything_with_bounded_labels(client: httpx.Client, connection: sa.Connection) -> None:
    three_done_one_failed_one_queued(connection)
    client.get("/livez")
    found = samples(client)
    assert found["cdn_pipeline_queue_depth", ()] == 1
    assert found["cdn_pipeline_images", (("status", "completed"),)] == 3
    assert found["cdn_pipeline_images_lost", ()] == 0
    assert found["cdn_pipeline_health", ()] == 2
    assert found["cdn_pipeline_up", (("part", "objects"),)] == 1
    assert found["cdn_pipeline_errors_24h", (("kind", "source_gone"),)] == 1
    assert found["cdn_pipeline_storage_bytes", (("store", "objects"),)] == 3 * 2 * rendition().file_size
    assert found["process_resident_memory_bytes", ()] > 0
    assert ("cdn_pipeline_cache_hit_ratio", ()) not in found  # not configured: a gap, no zero
    labels = (("method", "GET"), ("route", "/livez"), ("status", "200"))
    assert found["cdn_pipeline_http_request_seconds_count", labels] == 1
    named = {label for _, labels in found for label, _ in labels}
    assert named <= {
        *("part", "status", "kind", "priority", "state", "store", "host", "stage", "statistic", "class"),
        *("rule", "severity", "measurement"),
        *(
            "method",
            "route",
            "le",
            "connection",
            "quantile",
            "implementation",
            "major",
            "minor",
            "patchlevel",
            "version",
        ),
    }


def test_prometheus_sees_that_a_part_is_away(settings: Settings, catalog: sa.Engine) -> None:
    away = {"r2_endpoint_url": "http://127.0.0.1:9", "r2_access_key_id": "id", "r2_secret_access_key": "secret"}
    with api(settings, object_store_url="s3://objects", originals_store_url="s3://originals", **away) as client:
        found = samples(client)
    assert found["cdn_pipeline_up", (("part", "objects"),)] == 0
    assert found["cdn_pipeline_up", (("part", "catalog"),)] == 1
    assert found["cdn_pipeline_health", ()] == 0
    assert ("cdn_pipeline_round_trip_seconds", (("part", "objects"),)) not in found


def test_every_metric_of_ours_has_words_and_openmetrics_is_spoken_as_well(client: httpx.Client) -> None:
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
