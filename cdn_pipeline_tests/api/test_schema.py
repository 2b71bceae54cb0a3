"""The OpenAPI document: complete, and true whatever is sent."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import sqlalchemy as sa
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from jsonschema_rs import Draft202012Validator
from openapi_spec_validator import validate

from cdn_pipeline.api.app import openapi_document
from cdn_pipeline.api.document import TAGS, operations
from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import HourStats, write_hour
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import TOKEN, api
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, published, reference, register, see, session, take

DOCUMENT = openapi_document()
OPERATIONS = {operation["operationId"]: operation for _, _, operation in operations(DOCUMENT)}

schema = schemathesis.openapi.from_dict(
    DOCUMENT, config=schemathesis.Config.from_dict({"auth": {"openapi": {"HTTPBearer": {"bearer": TOKEN}}}})
)


def example_of(operation_id: str, parameter: str) -> str:
    (found,) = [each["example"] for each in OPERATIONS[operation_id]["parameters"] if each["name"] == parameter]
    return str(found)


def body_of(message: dict[str, Any]) -> Any:
    """The JSON that a request or an answer has: its schema and its example."""
    return message.get("requestBody", message).get("content", {}).get("application/json", {})


def success_of(operation: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The answer when all is well."""
    status = min(operation["responses"])
    return int(status), operation["responses"][status]


@pytest.fixture
def client(settings: Settings, catalog: sa.Engine) -> Iterator[httpx.Client]:
    """The application on a catalog in which something is everywhere, and what the document's examples name exists."""
    with session(catalog) as connection:
        _populate(connection)
    with api(settings) as client:
        yield client


def _populate(connection: sa.Connection) -> None:
    profile = example_of("get_profile_media", "profile_id")
    register(connection, RUN)
    see(connection, reference(owner=profile), reference(owner=profile, image="2", source_type="post_thumbnail"))
    good, bad = take(connection)
    settle(connection, RUN, [published(good), outcome(bad, Verdict.FAILED, failure=FailureKind.SOURCE_GONE)])
    see(connection, reference(owner=profile, image="3", source_type="post_carousel"))
    hold_queue(connection, INSTAGRAM)
    see(connection, reference(owner=profile, image="4", source_type="post_thumbnail"))
    start = catalog_time(connection).replace(minute=0, second=0, microsecond=0)
    write_hour(connection, HourStats(start.date(), start.hour, 10, 1, 80, 40, 20, 1, 1, {"source_gone": 1}, 5, 50))
    values = {
        "job_id": body_of(OPERATIONS["retry_failed_jobs"])["example"]["job_ids"][0],
        "erasure_id": example_of("get_erasure", "erasure_id"),
    }
    for statement in _ROWS:
        connection.execute(sa.text(statement), values)


_ROWS = (
    "UPDATE cdn_image_jobs SET id = :job_id WHERE status = 'failed'",
    "UPDATE cdn_processing_stats SET date = date - 1",
    """
    INSERT INTO cdn_erasures (id, collection, owner_id, scope, requested_by, reason, state)
    VALUES (:erasure_id, 'instagram', 'owner', 'owner', 'ada', 'a test', 'purge_pending')
    """,
    """
    INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
    VALUES ('cdn.example', 5, 'source_error', now(), now() + interval '1 minute')
    """,
    """
    INSERT INTO cdn_delivery_probes (path, problem, status, cold_ms, warm_ms, cold_cache, warm_cache)
    VALUES ('/th/a.webp', NULL, 200, 50, 10, 'MISS', 'HIT')
    """,
)


@schema.parametrize()
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_is_sent_is_answered_as_documented(case: schemathesis.Case[Any], client: httpx.Client) -> None:
    case.call_and_validate(base_url=str(client.base_url))


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_an_example_is_what_its_schema_says(operation_id: str) -> None:
    operation = OPERATIONS[operation_id]
    answer = body_of(success_of(operation)[1])
    assert not answer or "example" in answer
    for body in (body_of(operation), answer):
        if body:
            Draft202012Validator({**body["schema"], "components": DOCUMENT["components"]}).validate(body["example"])


def test_the_examples_work_where_there_is_what_they_name(client: httpx.Client) -> None:
    for method, path, operation in operations(DOCUMENT):
        examples = {each["name"]: each for each in operation.get("parameters", ()) if "example" in each}
        answer = client.request(
            method,
            path.format(**{name: each["example"] for name, each in examples.items()}),
            params={name: each["example"] for name, each in examples.items() if each["in"] == "query"},
            json=body_of(operation).get("example"),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        assert answer.status_code == success_of(operation)[0], (method, path, answer.text)


def test_the_document_is_an_openapi_document() -> None:
    validate(DOCUMENT)


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_an_operation_says_what_it_is_for_what_it_takes_and_what_may_go_wrong(operation_id: str) -> None:
    operation = OPERATIONS[operation_id]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", operation_id)
    assert operation["tags"] in [[tag["name"]] for tag in TAGS]
    assert operation["summary"]
    assert operation["description"]
    assert all(parameter["description"] for parameter in operation.get("parameters", ()))
    failures = {status for status in operation["responses"] if status >= "400"}
    for part, wanted in (("parameters", {"422"}), ("requestBody", {"400", "422"}), ("security", {"401", "503"})):
        assert part not in operation or failures >= wanted
    for status in failures:
        (media_type,) = operation["responses"][status]["content"]
        is_health = status == "503" and operation_id in ("get_cdn_health", "get_system_health")
        assert media_type == ("application/json" if is_health else "application/problem+json")


def test_schemas_have_names_that_a_client_can_use_and_say_what_they_are() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]+", name)
        assert schema["description"], name
