"""Health over HTTP: what is asked, who is away, and the documents' exact keys."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog import sessions
from cdn_pipeline.observe.thresholds import QUEUE_DEPTH_WARNING
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import ADMIN, api
from cdn_pipeline_tests.queue.catalogs import RUN, published, reference, register, see, session, take
from cdn_pipeline_tests.s3 import S3Server, moto_server  # noqa: F401

NOBODY = "http://127.0.0.1:9"


def remote(server: S3Server, **more: str) -> dict[str, str]:
    """Both stores on this server."""
    return {
        "object_store_url": f"s3://{server.new_bucket()}",
        "originals_store_url": f"s3://{server.new_bucket()}",
        "r2_endpoint_url": server.endpoint_url,
        "r2_access_key_id": server.access_key_id,
        "r2_secret_access_key": server.secret_access_key,
        **more,
    }


def publish_one(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        register(connection, RUN)
        see(connection, reference())
        settle(connection, RUN, [published(job) for job in take(connection)])


def stop(catalog: sa.Engine) -> None:
    """Nobody can connect any more, as if the server were away."""
    with catalog.connect() as connection:
        name = connection.scalar(sa.text("SELECT current_database()"))
    catalog.dispose()
    outside = sa.create_engine(catalog.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(sa.text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        connection.execute(
            sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
        )
    outside.dispose()


def test_a_process_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_without_its_catalog_a_process_is_alive_but_not_ready(client: httpx.Client, catalog: sa.Engine) -> None:
    stop(catalog)
    assert client.get("/livez").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert "not currently accepting connections" in answer.json()["detail"]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_readiness_does_not_wait_for_what_it_does_not_need(
    settings: Settings, catalog: sa.Engine, moto_server: S3Server, silent_server: str
) -> None:
    with api(settings, **remote(moto_server, r2_endpoint_url=silent_server)) as client:
        health = Thread(target=client.get, args=("/api/v1/health/cdn",))
        health.start()  # waits for the stores
        assert client.get("/readyz").json() == {"status": "ready"}
        assert health.is_alive()
        health.join()


def test_readiness_and_health_need_no_thread_that_waits_for_the_catalog(
    settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_SERVING_STATEMENT_SECONDS", 60)
    monkeypatch.setitem(sessions._SERVING_OPTIONS, "pool_timeout", 60)
    with api(settings) as client, ThreadPoolExecutor(42) as visitors:
        with catalog.begin() as locking:
            locking.execute(sa.text("LOCK TABLE cdn_image_assets"))
            pictures = [visitors.submit(client.get, PICTURES, timeout=60) for _ in range(40)]
            while _waiting(catalog) < sessions.SERVING_CONNECTIONS:
                time.sleep(0.05)
            health = visitors.submit(client.get, "/api/v1/health/cdn")
            admins = visitors.submit(client.get, "/api/v1/admin/cdn/metrics", headers=ADMIN)
            assert client.get("/readyz").json() == {"status": "ready"}
            assert health.result().json()["checks"]["catalog"]["status"] == "healthy"
            assert admins.result().status_code == 200
            assert not any(picture.done() for picture in pictures)
        assert {picture.result().status_code for picture in pictures} == {404}


PICTURES = "/api/v1/creators/ig/00000000-0000-4000-8000-000000000000/media"


def _waiting(catalog: sa.Engine) -> int:
    """How many requests for pictures wait for the lock."""
    with catalog.connect() as connection:
        return connection.scalar(_WAITING) or 0


_WAITING = sa.text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database() AND query LIKE '%dense_rank%'
""")


def test_the_health_document_has_the_keys_that_were_agreed_on(client: httpx.Client, catalog: sa.Engine) -> None:
    publish_one(catalog)
    answer = client.get("/api/v1/health/cdn")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert document["status"] == "healthy"
    checks = document["checks"]
    assert checks["r2_storage"].keys() >= {"status", "latency_ms"}
    assert checks["processing_queue"].keys() >= {"status", "depth"}
    assert checks["workers"].keys() >= {"status", "active_count"}
    assert checks["cdn_delivery"].keys() >= {"status", "cache_hit_ratio"}
    assert document["system_info"].keys() == {"version", "uptime_hours", "total_processed", "last_maintenance"}
    assert checks["r2_storage"]["latency_ms"] >= 0
    assert checks["processing_queue"]["depth"] == 0
    assert checks["cdn_delivery"]["cache_hit_ratio"] is None  # not configured, and so not invented
    assert document["system_info"]["total_processed"] == 1


def test_health_by_component_has_the_keys_that_were_agreed_on(client: httpx.Client, catalog: sa.Engine) -> None:
    publish_one(catalog)
    document = client.get("/api/v1/cdn/health").json()
    assert document.keys() == {"status", "timestamp", "version", "components", "metrics"}
    components = document["components"]
    assert components.keys() == {"queue_manager", "r2_storage", "image_pipeline"}
    assert components["queue_manager"].keys() >= {
        "status",
        "queue_size",
        "processing_jobs",
        "uptime_seconds",
        "circuit_breaker_open",
        "statistics",
    }
    assert components["r2_storage"].keys() >= {"status", "connectivity", "bucket_accessible"}
    assert components["image_pipeline"].keys() >= {"status", "jobs_processed", "success_rate", "avg_processing_time"}
    assert document["metrics"] == {
        "total_components": 3,
        "healthy_components": 3,
        "degraded_components": 0,
        "unhealthy_components": 0,
    }
    assert components["image_pipeline"]["jobs_processed"] == 1
    assert components["image_pipeline"]["success_rate"] == 100.0


def test_a_store_that_is_away_makes_both_documents_unhealthy(
    settings: Settings, catalog: sa.Engine, moto_server: S3Server
) -> None:
    with api(settings, **remote(moto_server, r2_endpoint_url=NOBODY)) as client:
        checks = _unhealthy(client, "/api/v1/health/cdn")["checks"]
        components = _unhealthy(client, "/api/v1/cdn/health")["components"]
        assert client.get("/readyz").status_code == 200  # what is published is known without the store
    assert checks["r2_storage"]["status"] == "unhealthy"
    assert checks["r2_storage"]["latency_ms"] is None
    assert checks["r2_storage"]["first"]
    assert checks["processing_queue"]["status"] == "healthy"
    assert (components["r2_storage"]["connectivity"], components["r2_storage"]["bucket_accessible"]) == (
        "failed",
        False,
    )


def test_a_catalog_that_is_away_makes_both_documents_unhealthy(client: httpx.Client, catalog: sa.Engine) -> None:
    stop(catalog)
    document = _unhealthy(client, "/api/v1/health/cdn")
    assert document["checks"]["catalog"]["status"] == "unhealthy"
    assert document["checks"]["r2_storage"]["status"] == "healthy"
    assert document["checks"]["processing_queue"]["depth"] is None
    components = _unhealthy(client, "/api/v1/cdn/health")["components"]
    assert components["queue_manager"]["queue_size"] is None
    assert components["r2_storage"]["status"] == "healthy"


def test_degraded_is_still_200_and_says_what_to_do(client: httpx.Client, catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, *(reference(image=str(number)) for number in range(QUEUE_DEPTH_WARNING + 1)))
    answer = client.get("/api/v1/health/cdn")
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    queue = answer.json()["checks"]["processing_queue"]
    assert queue["status"] == "degraded"
    assert str(QUEUE_DEPTH_WARNING) in queue["words"]
    assert queue["first"]
    assert queue["runbook"].startswith("docs/runbook.md#")


def _unhealthy(client: httpx.Client, path: str) -> dict[str, Any]:
    answer = client.get(path)
    assert answer.status_code == 503
    document: dict[str, Any] = answer.json()
    assert document["status"] == "unhealthy"
    return document
