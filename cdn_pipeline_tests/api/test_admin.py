"""What operators do over HTTP: only with the token, told exactly, and written down."""

import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from cdn_pipeline.api.app import create_app
from cdn_pipeline.catalog import sessions
from cdn_pipeline.demo.serving import serving_asgi
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.unattended import DUE_SENSOR
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.erase import Eraser
from cdn_pipeline_tests.api.apis import ADMIN, api
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    jobs,
    open_jobs,
    outcome,
    published,
    reference,
    register,
    see,
    session,
    take,
)

NOBODY = "00000000-0000-4000-8000-000000000007"

ROUTES = (
    ("GET", "/api/v1/admin/cdn/metrics"),
    ("GET", "/api/v1/admin/cdn/failed-jobs"),
    ("POST", "/api/v1/admin/cdn/retry-failed"),
    ("GET", "/api/v1/admin/cdn/audit"),
    ("POST", "/api/v1/cdn/queue/clear"),
    ("POST", "/api/v1/cdn/queue/restore"),
    ("GET", "/api/v1/admin/cdn/erasures"),
    ("POST", "/api/v1/admin/cdn/erasures"),
    ("POST", "/api/v1/admin/cdn/erasure-plan"),
    ("GET", f"/api/v1/admin/cdn/erasures/{NOBODY}"),
)


@pytest.fixture
def client(settings: Settings, catalog: sa.Engine) -> Iterator[httpx.Client]:
    with api(settings) as client:
        client.headers.update(ADMIN)
        yield client


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def fail_all(connection: sa.Connection, *kinds: FailureKind) -> None:
    """As many images as kinds, each failed with its own; the last one failed last."""
    register(connection, RUN)
    for number, kind in enumerate(kinds):
        see(connection, reference(image=str(number), owner=f"owner-{number}"))
        settle(connection, RUN, [outcome(job, Verdict.FAILED, failure=kind) for job in take(connection)])


def failed_ids(connection: sa.Connection) -> list[str]:
    return [str(job["id"]) for job in jobs(connection) if job["status"] == "failed"]


def actions(client: httpx.Client) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = client.get("/api/v1/admin/cdn/audit").json()
    return found


# -- the token --


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_admin_routes_refuse_whoever_has_no_token_or_another(client: httpx.Client, method: str, path: str) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer another"}, {"Authorization": "Bearer té"}):
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        answer = client.request(method, path, headers=encoded)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"


def test_without_a_configured_token_admin_routes_are_off(settings: Settings, catalog: sa.Engine) -> None:
    with api(settings, admin_api_token=None) as client:
        for method, path in ROUTES:
            answer = client.request(method, path, headers=ADMIN)
            assert answer.status_code == 503
            assert "ADMIN_API_TOKEN" in answer.json()["detail"]


def test_an_empty_token_opens_nothing(settings: Settings, catalog: sa.Engine) -> None:
    unchecked = settings.model_copy(update={"admin_api_token": SecretStr("")})
    with serving_asgi(create_app(unchecked)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        for method, path in ROUTES:
            for headers in ({}, {"Authorization": "Bearer"}):
                assert client.request(method, path, headers=headers).status_code == 503


def test_every_route_for_admins_says_in_the_openapi_document_that_it_wants_the_token(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    wanting = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if operation.get("security")
    }
    listed = {(method, path.rpartition("/")[0] + "/{erasure_id}" if "-4" in path else path) for method, path in ROUTES}
    assert wanting == listed
    for method, path in wanting:
        assert {"401", "503"} <= paths[path][method.lower()]["responses"].keys()


# -- failed jobs --


def test_failed_jobs_are_listed_the_latest_first_page_by_page(client: httpx.Client, connection: sa.Connection) -> None:
    kinds = (FailureKind.IMAGE_CORRUPT, FailureKind.SOURCE_GONE, FailureKind.IMAGE_CORRUPT)
    fail_all(connection, *kinds)
    expected = failed_ids(connection)[::-1]
    found: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        more = {"cursor": cursor} if cursor else {}
        page = client.get("/api/v1/admin/cdn/failed-jobs", params={"limit": 1, **more}).json()
        found += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert found == expected
    assert cursor is None
    (first,) = client.get("/api/v1/admin/cdn/failed-jobs", params={"limit": 1}).json()["jobs"]
    assert (first["kind"], first["owner_id"], first["image_status"]) == ("image_corrupt", "owner-2", "failed")
    assert "cdn.example/" not in str(first)  # no source URL: it is signed


def test_failed_jobs_of_one_kind_come_with_its_advice(client: httpx.Client, connection: sa.Connection) -> None:
    fail_all(connection, FailureKind.IMAGE_CORRUPT, FailureKind.SOURCE_GONE)
    page = client.get("/api/v1/admin/cdn/failed-jobs", params={"kind": "source_gone"}).json()
    assert [job["kind"] for job in page["jobs"]] == ["source_gone"]
    assert page["advice"] == {"source_gone": FailureKind.SOURCE_GONE.advice}


@pytest.mark.parametrize(
    ("parameters", "status"),
    [({"cursor": "nonsense"}, 404), ({"cursor": "MjAyNg=="}, 404), ({"kind": "x"}, 422), ({"limit": "0"}, 422)],
)
def test_what_cannot_be_a_page_is_refused(client: httpx.Client, parameters: dict[str, str], status: int) -> None:
    assert client.get("/api/v1/admin/cdn/failed-jobs", params=parameters).status_code == status


# -- retries --


def test_a_retry_opens_jobs_and_tells_of_each_id_and_is_written_down(
    client: httpx.Client, connection: sa.Connection
) -> None:
    fail_all(connection, FailureKind.SOURCE_GONE, FailureKind.IMAGE_CORRUPT)
    ids, nobody = failed_ids(connection), str(uuid.uuid4())
    body = {"job_ids": [ids[0], nobody], "priority": 1}
    answer = client.post("/api/v1/admin/cdn/retry-failed", json=body, headers={"X-Actor": "ada"})
    assert answer.status_code == 200
    (job,) = open_jobs(connection)
    assert (job["job_type"], job["priority"], job["retry_count"]) == ("retry", 1, 0)
    document = answer.json()
    assert "due_images_sensor was never seen" in document.pop("hint")
    assert document == {
        "counts": {"reopened": 1, "unknown": 1},
        "jobs": [
            {"job_id": ids[0], "answer": "reopened", "open_job_id": str(job["id"]), "shard": job["shard"]},
            {"job_id": nobody, "answer": "unknown", "open_job_id": None, "shard": None},
        ],
    }
    (action,) = actions(client)
    assert (action["actor"], action["action"], action["affected"]) == ("ada", "retry-failed", 1)
    assert action["details"]["job_ids"] == [ids[0]]


def test_a_retry_hints_at_nothing_where_the_sensor_looks_or_nothing_is_due(
    client: httpx.Client, connection: sa.Connection
) -> None:
    fail_all(connection, FailureKind.SOURCE_GONE)
    path, (job_id,) = "/api/v1/admin/cdn/retry-failed", failed_ids(connection)
    assert client.post(path, json={"job_ids": [NOBODY]}).json()["hint"] is None
    beat(connection, DUE_SENSOR)
    assert client.post(path, json={"job_ids": [job_id]}).json()["hint"] is None


@pytest.mark.parametrize("body", [{}, {"job_ids": []}, {"job_ids": ["x"]}, {"job_ids": [NOBODY], "priority": 3}])
def test_a_retry_of_nothing_is_refused(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/api/v1/admin/cdn/retry-failed", json=body).status_code == 422


def test_a_retry_leaves_what_is_on_hold_and_says_how_to_let_it_go(
    client: httpx.Client, connection: sa.Connection
) -> None:
    see(connection, reference())
    client.post("/api/v1/cdn/queue/clear", json={})
    (job,) = jobs(connection)
    answer = client.post("/api/v1/admin/cdn/retry-failed", json={"job_ids": [str(job["id"])]})
    assert answer.json()["counts"] == {"held": 1}
    assert jobs(connection)[0]["held_at"] is not None
    (operation,) = client.get("/openapi.json").json()["paths"]["/api/v1/admin/cdn/retry-failed"].values()
    assert "/api/v1/cdn/queue/restore" in operation["description"]


# -- holding --


def test_an_operators_write_has_more_time_than_a_reader(
    settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_SERVING_STATEMENT_SECONDS", 1)
    monkeypatch.setattr(sessions, "_SILENCE_SECONDS", 0)
    with api(settings) as client, ThreadPoolExecutor() as operators:
        with catalog.begin() as locking:
            locking.execute(sa.text("LOCK TABLE cdn_image_jobs"))
            ask = partial(client.post, "/api/v1/cdn/queue/clear", headers=ADMIN)
            written, counted = operators.submit(ask, json={}), operators.submit(ask, json={"dry_run": True})
            assert counted.result().status_code == 503  # a reader's time is over
        assert written.result().status_code == 200


def test_the_queue_is_held_and_restored_and_both_are_written_down(
    client: httpx.Client, connection: sa.Connection
) -> None:
    see(connection, reference(), reference(image="2", source_type="post_thumbnail"))
    counted = client.post("/api/v1/cdn/queue/clear", json={"priorities": [4], "dry_run": True}).json()
    assert (counted["held"], counted["dry_run"]) == (1, True)
    assert [job["held_at"] for job in jobs(connection)] == [None, None]
    held = client.post("/api/v1/cdn/queue/clear", json={"priorities": [4]}).json()
    assert held["held"] == 1
    assert "/api/v1/cdn/queue/restore" in held["restore"]
    assert {job["priority"]: job["held_at"] is not None for job in jobs(connection)} == {2: False, 4: True}
    assert client.post("/api/v1/cdn/queue/restore", json={}).json() == {"restored": 1}
    assert [job["held_at"] for job in jobs(connection)] == [None, None]
    assert [(each["action"], each["affected"]) for each in actions(client)] == [
        ("queue-restore", 1),
        ("queue-clear", 1),
    ]
    assert actions(client)[1]["details"] == {"priorities": [4], "shards": None}


@pytest.mark.parametrize("path", ["clear", "restore"])
def test_a_selection_that_is_half_understood_selects_nothing(
    client: httpx.Client, connection: sa.Connection, path: str
) -> None:
    see(connection, reference())
    answer = client.post(f"/api/v1/cdn/queue/{path}", json={"priority": [10]})
    assert answer.status_code == 422
    assert "priority" in answer.json()["detail"]
    assert [job["held_at"] for job in jobs(connection)] == [None]


@pytest.mark.parametrize("body", [{"shards": ["40"]}, {"priorities": [0]}, {"priorities": [11]}])
def test_there_are_64_shards_and_10_priorities(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post("/api/v1/cdn/queue/clear", json=body).status_code == 422


# -- erasures --


def test_an_owner_is_erased_after_a_look_at_what_would_go(client: httpx.Client, connection: sa.Connection) -> None:
    register(connection, RUN)
    see(connection, reference())
    settle(connection, RUN, [published(job, sha256="a" * 64) for job in take(connection)])
    plan = client.post("/api/v1/admin/cdn/erasure-plan", json={"owner_id": "owner"}).json()
    assert (plan["images"], len(plan["paths"])) == (1, 2)
    body = {"owner_id": "owner", "requested_by": "ada", "reason": "ticket 123"}
    answer = client.post("/api/v1/admin/cdn/erasures", json=body)
    assert answer.status_code == 202
    erasure = answer.json()
    assert (erasure["owner_id"], erasure["scope"], erasure["requested_by"]) == ("owner", "owner", "ada")
    ended = _ended(client, erasure["id"])
    assert ended["state"] == "purge_pending"  # no token of Cloudflare's is configured
    assert ended["images"] == 1
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_assets")) == 0
    assert [each["id"] for each in client.get("/api/v1/admin/cdn/erasures").json()] == [erasure["id"]]
    (action,) = actions(client)
    assert (action["actor"], action["action"]) == ("ada", "erase")


def test_the_audit_of_an_erasure_knows_who_has_asked_the_api(client: httpx.Client, connection: sa.Connection) -> None:
    body = {"owner_id": "owner", "requested_by": "the owner", "reason": "ticket 123"}
    client.post("/api/v1/admin/cdn/erasures", json=body, headers={"X-Actor": "ada"})
    (action,) = actions(client)
    assert (action["actor"], action["details"]["requested_by"]) == ("ada", "the owner")


def test_no_erasure_begins_without_its_audit(client: httpx.Client, connection: sa.Connection) -> None:
    connection.execute(sa.text("ALTER TABLE cdn_audit RENAME TO elsewhere"))
    body = {"owner_id": "owner", "requested_by": "ada", "reason": "ticket 123"}
    assert client.post("/api/v1/admin/cdn/erasures", json=body).status_code == 500
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_erasures")) == 0
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_tombstones")) == 0


def test_erasures_that_take_long_leave_the_threads_to_others(
    client: httpx.Client, catalog: sa.Engine, connection: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = Event()

    def go_on(_: Eraser, erasure_id: uuid.UUID) -> None:
        is_over.wait()

    monkeypatch.setattr(Eraser, "go_on", go_on)
    try:
        for number in range(sessions.SERVING_CONNECTIONS + 10):
            body = {"owner_id": f"owner-{number}", "requested_by": "ada", "reason": "a test"}
            assert client.post("/api/v1/admin/cdn/erasures", json=body).status_code == 202
        assert client.get(f"/api/v1/creators/ig/{NOBODY}/media").status_code == 404
    finally:
        is_over.set()


def _ended(client: httpx.Client, erasure_id: str) -> dict[str, Any]:
    erasure: dict[str, Any] = {"state": "open"}
    for _ in range(200):
        if erasure["state"] != "open":
            break
        time.sleep(0.05)
        erasure = client.get(f"/api/v1/admin/cdn/erasures/{erasure_id}").json()
    return erasure


def test_what_cannot_be_erased_is_refused(client: httpx.Client, connection: sa.Connection) -> None:
    see(connection, reference(owner="one"), reference(image="2", owner="two"))
    ids = [str(each) for each in connection.scalars(sa.text("SELECT id FROM cdn_image_assets"))]
    who = {"requested_by": "ada", "reason": "a test"}
    for status, target in (
        (422, {}),
        (422, {"owner_id": "one", "image_ids": ids}),
        (422, {"owner_id": "../one"}),
        (409, {"image_ids": ids}),  # of two owners
        (404, {"image_ids": [NOBODY]}),
    ):
        assert client.post("/api/v1/admin/cdn/erasures", json={**target, **who}).status_code == status, target
    assert client.get(f"/api/v1/admin/cdn/erasures/{uuid.uuid4()}").status_code == 404
    assert client.get("/api/v1/admin/cdn/erasures").json() == []


def test_everything_that_is_measured_is_told_to_admins(client: httpx.Client, connection: sa.Connection) -> None:
    fail_all(connection, FailureKind.IMAGE_CORRUPT)
    document = client.get("/api/v1/admin/cdn/metrics").json()
    assert document["processing_metrics"]["failed_jobs_24h"] == 1
    assert document["failures"][0]["kind"] == "image_corrupt"
    assert document["images_lost"] == 0
    assert document["traffic"] is None
    assert document["process"]["resident_bytes"] > 0
