"""What every request gets: an id, problems that say what to do, a line in the log, a place in the metrics."""

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from starlette.types import Message, Receive, Scope, Send

from cdn_pipeline.api.access import JsonLines
from cdn_pipeline.api.bodies import MAX_BODY_BYTES
from cdn_pipeline.api.problems import DefectMiddleware
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import ADMIN, api

UNKNOWN = "/api/v1/creators/ig/00000000-0000-4000-8000-000000000000/media"


def test_an_answer_has_the_callers_id_or_one_of_its_own(client: httpx.Client) -> None:
    given = client.get("/livez", headers={"X-Request-ID": "frontend-7"})
    assert given.headers["x-request-id"] == "frontend-7"
    made = {client.get("/livez").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize("hostile", ["a b", "x" * 65, '"}{', "é"])
def test_an_id_that_would_spoil_a_log_is_replaced(client: httpx.Client, hostile: str) -> None:
    answer = client.get("/livez", headers=[(b"X-Request-ID", hostile.encode())])
    assert answer.headers["x-request-id"] != hostile
    assert answer.headers["x-request-id"].isalnum()


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/api/v1/nothing"])
def test_a_route_that_is_not_there_says_where_the_routes_are_told(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "`/openapi.json`" in answer.json()["detail"]
    assert "docs/api.md" in answer.json()["detail"]


def test_a_problem_names_its_request(client: httpx.Client) -> None:
    problem = client.get(UNKNOWN, headers={"X-Request-ID": "frontend-8"}).json()
    assert problem["request_id"] == "frontend-8"
    assert problem["instance"] == UNKNOWN
    assert problem["status"] == 404


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("DELETE", "/livez", 405)])
def test_errors_of_the_router_are_problems_too(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/livez", "HEAD, GET"),
        ("/api/v1/admin/cdn/erasures", "HEAD, GET, POST"),  # two routes
        ("/api/v1/cdn/queue/clear", "POST"),
        ("/th/a.webp", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_is_not_allowed_is_told_which_ones_are(client: httpx.Client, path: str, allowed: str) -> None:
    answer = client.delete(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_a_head_has_the_headers_of_a_get_and_is_counted_by_its_route(client: httpx.Client) -> None:
    answer = client.head(UNKNOWN)
    assert (answer.status_code, answer.content) == (404, b"")
    assert answer.headers["content-length"] == str(len(client.get(UNKNOWN, headers=_id_of(answer)).content))
    route = 'method="HEAD",route="/api/v1/creators/ig/{profile_id}/media",status="404"'
    assert f"cdn_pipeline_http_request_seconds_count{{{route}}} 1.0" in client.get("/metrics").text


def _id_of(answer: httpx.Response) -> dict[str, str]:
    return {"X-Request-ID": answer.headers["x-request-id"]}


def test_an_invalid_request_is_told_where_it_is_wrong_without_its_values(client: httpx.Client) -> None:
    answer = client.get("/api/v1/creators/ig/media", params={"profile_id": "secret-thing"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == ["query", "profile_id", "0"]
    assert "secret-thing" not in answer.text


def test_a_body_that_does_not_say_it_is_json_is_told_how(client: httpx.Client) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded", **ADMIN}  # as curl sends
    answer = client.post("/api/v1/cdn/queue/restore", content=b"{}", headers=form)
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]


def test_a_statement_that_takes_too_long_is_ended_and_the_caller_told_to_come_back(
    client: httpx.Client, catalog: sa.Engine
) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text("LOCK TABLE cdn_image_assets"))
        answer = client.get(UNKNOWN)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert client.get(UNKNOWN).status_code == 404


def test_connections_that_died_are_replaced_without_an_error(client: httpx.Client, catalog: sa.Engine) -> None:
    assert client.get(UNKNOWN).status_code == 404
    with catalog.connect() as connection:
        ended = connection.execute(
            sa.text("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
            """)
        ).all()
    assert ended
    assert client.get(UNKNOWN).status_code == 404


def test_a_defect_is_a_problem_that_tells_nothing_of_the_inside(
    client: httpx.Client, catalog: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text("ALTER TABLE cdn_image_assets RENAME TO elsewhere"))
    answer = client.get(UNKNOWN, headers={"X-Request-ID": "frontend-9"})
    assert answer.status_code == 500
    assert answer.json()["request_id"] == "frontend-9"
    assert answer.headers["x-request-id"] == "frontend-9"
    assert "elsewhere" not in answer.text
    assert "cdn_image_assets" not in answer.text
    assert any("a request failed" in record.message for record in caplog.records)


def test_what_nobody_expected_is_a_problem_with_all_headers_and_one_line_in_the_log(
    settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("secret-thing")

    monkeypatch.setattr("cdn_pipeline.api.media.profiles_media", fail)
    with api(settings, api_cors_origins="https://app.example") as client:
        answer = client.get(UNKNOWN, headers={"X-Request-ID": "frontend-9", "Origin": "https://app.example"})
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert (answer.json()["request_id"], answer.headers["x-request-id"]) == ("frontend-9", "frontend-9")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "secret-thing" not in answer.text
    (failed,) = [record for record in caplog.records if record.exc_info]
    assert failed.getMessage() == "a request failed"


def test_an_answer_that_has_begun_is_not_answered_again(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Message] = []

    async def begin_and_fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("x")

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(DefectMiddleware(begin_and_fail)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert [record.getMessage() for record in caplog.records] == ["a request failed"]


def _chunks(length: int) -> Iterator[bytes]:
    yield from (b" " * 1000 for _ in range(length // 1000))


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_body_of_more_than_a_megabyte_is_refused(client: httpx.Client, is_declared: bool) -> None:
    headers = {"Content-Type": "application/json", **ADMIN}
    for length, status in ((MAX_BODY_BYTES - 1000, 200), (MAX_BODY_BYTES + 1000, 413)):
        chunks = itertools.chain((b"{}",), _chunks(length))
        content = b"".join(chunks) if is_declared else chunks
        answer = client.post("/api/v1/cdn/queue/restore", content=content, headers=headers)
        assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_body_is_read_from_whoever_has_not_the_token(client: httpx.Client) -> None:
    for content in (b"{broken", b"".join(_chunks(MAX_BODY_BYTES + 1000))):
        answer = client.post("/api/v1/cdn/queue/clear", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic dG9rZW46", "Bearer tökén"])
def test_admin_routes_refuse_whoever_has_not_the_token(client: httpx.Client, header: str | None) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode())]
    answer = client.get("/api/v1/admin/cdn/metrics", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/api/v1/admin/cdn/metrics", headers=ADMIN).status_code == 200


def test_pages_elsewhere_may_ask_only_if_they_are_configured(settings: Settings, catalog: sa.Engine) -> None:
    with api(settings, api_cors_origins="https://app.example, https://other.example/") as client:
        for origin, allowed in (
            ("https://app.example", "https://app.example"),
            ("https://other.example", "https://other.example"),
            ("https://evil.example", None),
        ):
            answer = client.get(UNKNOWN, headers={"Origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed


def _preflight(client: httpx.Client, path: str, origin: str, headers: str) -> httpx.Response:
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": headers}
    return client.options(path, headers={"Origin": origin, **asked})


def test_preflights_know_what_the_api_takes_and_let_everybody_to_the_pictures(
    settings: Settings, catalog: sa.Engine
) -> None:
    with api(settings, api_cors_origins="https://app.example") as client:
        assert _preflight(client, UNKNOWN, "https://app.example", "authorization,x-actor,if-none-match").is_success
        assert _preflight(client, UNKNOWN, "https://evil.example", "x-actor").status_code == 400
        picture = _preflight(client, "/th/ig/a/b/256/c.webp", "https://evil.example", "range")
    assert (picture.status_code, picture.headers["access-control-allow-origin"]) == (204, "*")


def test_requests_are_counted_by_route_and_not_by_path(client: httpx.Client) -> None:
    for number in range(3):
        client.get(f"/api/v1/creators/ig/00000000-0000-4000-8000-00000000000{number}/media")
    client.request("PROPFIND", "/nothing/else")
    text = client.get("/metrics").text
    route = 'method="GET",route="/api/v1/creators/ig/{profile_id}/media",status="404"'
    assert f"cdn_pipeline_http_request_seconds_count{{{route}}} 3.0" in text
    assert 'method="other",route="unknown"' in text
    assert "00000000-0000" not in text


def test_a_line_of_the_log_is_json_with_what_was_given() -> None:
    record = logging.makeLogRecord({"msg": "asked %s", "args": ("twice",), "levelname": "INFO", "path": '/a"\n'})
    line = json.loads(JsonLines().format(record))
    assert (line["message"], line["level"], line["path"], line["request_id"]) == ("asked twice", "info", '/a"\n', "-")


def test_requests_at_once_keep_their_ids_apart(client: httpx.Client) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = client.get(UNKNOWN, headers={"X-Request-ID": f"id-{number}"}).json()["request_id"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"id-{number}" for number in range(24)}
