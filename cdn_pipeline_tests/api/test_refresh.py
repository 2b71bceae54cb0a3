"""`…/media/refresh` as a frontend sees it."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.api.refresh import limits_of
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.observe.unattended import DUE_SENSOR
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.refreshes import RefreshAnswer, finish_refresh, take_refreshes
from cdn_pipeline.queue.tombstones import set_owner_tombstone
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import api, with_settings
from cdn_pipeline_tests.api.dagster_service import DagsterService, running_dagster
from cdn_pipeline_tests.engine.runs import rows
from cdn_pipeline_tests.queue.catalogs import reference, see, session

OWNER = "0b3c0d4e-8f3a-4f0e-9c53-1d2f8f7a6b5c"
PATH = f"/api/v1/creators/ig/{OWNER}/media/refresh"


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """A known profile; the sensor looks."""
    with session(catalog) as connection:
        see(connection, reference(owner=OWNER, shard="02"))
        beat(connection, DUE_SENSOR)
        yield connection


@pytest.fixture
def dagster() -> Iterator[DagsterService]:
    with running_dagster() as service:
        yield service


@pytest.fixture
def client(settings: Settings, connection: sa.Connection) -> Iterator[httpx.Client]:
    with api(settings) as client:
        yield client


def answer(connection: sa.Connection, answer: RefreshAnswer) -> None:
    """A run does what is open."""
    for refresh in take_refreshes(connection, INSTAGRAM, SHARDS, "some run"):
        finish_refresh(connection, INSTAGRAM, refresh, answer)


def test_a_refresh_is_queued_for_the_sensor_and_needs_no_token(client: httpx.Client) -> None:
    answer = client.post(PATH)
    assert answer.status_code == 202
    assert answer.headers["cache-control"] == "no-store"
    document = answer.json()
    assert datetime.fromisoformat(document.pop("requested_at")).tzinfo
    assert document == {
        "profile_id": OWNER,
        "status": "queued",
        "run": {"id": None, "started_by": "sensor", "hint": None},
        "status_url": PATH,
    }


def test_where_no_sensor_looks_every_answer_says_what_an_operator_does_until_a_run_has_it(
    client: httpx.Client, connection: sa.Connection
) -> None:
    connection.execute(sa.text("DELETE FROM cdn_heartbeats"))
    asked, again, waiting = client.post(PATH).json(), client.post(PATH).json(), client.get(PATH).json()
    for document in (asked, again, waiting):
        assert "due_images_sensor was never seen" in document["run"]["hint"]
        assert """--tags '{"dagster/partition": "02"}'""" in document["run"]["hint"]
    assert waiting["words"] == waiting["run"]["hint"]
    take_refreshes(connection, INSTAGRAM, SHARDS, "some run")
    assert client.get(PATH).json()["run"]["hint"] is None


def test_asking_again_while_it_is_open_is_answered_with_the_same(client: httpx.Client) -> None:
    first, second = client.post(PATH).json(), client.post(PATH.replace(OWNER, OWNER.upper())).json()
    assert second == {**first, "status": "already_queued"}


def test_two_requests_at_once_open_one_refresh_and_start_one_run(
    settings: Settings, connection: sa.Connection, dagster: DagsterService, catalog: sa.Engine
) -> None:
    with api(settings, dagster_graphql_url=dagster.url) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(PATH), range(8)))
    assert sorted(answer.json()["status"] for answer in answers) == ["already_queued"] * 7 + ["queued"]
    assert len(dagster.launches) == 1
    assert len(rows(catalog, "SELECT id FROM cdn_refreshes")) == 1


def test_with_dagsters_graphql_the_run_is_started_at_once_and_told_from_then_on(
    settings: Settings, connection: sa.Connection, dagster: DagsterService
) -> None:
    with api(settings, dagster_graphql_url=dagster.url) as client:
        documents: list[Any] = [client.post(PATH).json(), client.post(PATH).json(), client.get(PATH).json()]
    assert [document["run"] for document in documents] == [{"id": "run-1", "started_by": "dagster", "hint": None}] * 3
    [launch] = dagster.launches
    assert {"key": "dagster/partition", "value": "02"} in launch["executionMetadata"]["tags"]


def test_a_dagster_that_is_away_leaves_it_to_the_sensor(settings: Settings, connection: sa.Connection) -> None:
    with api(settings, dagster_graphql_url="http://127.0.0.1:1/graphql") as client:
        answer = client.post(PATH)
    assert answer.status_code == 202
    assert answer.json()["run"] == {"id": None, "started_by": "sensor", "hint": None}


def test_several_profiles_of_a_shard_are_one_run(
    settings: Settings, connection: sa.Connection, dagster: DagsterService
) -> None:
    other = str(uuid.uuid4())
    see(connection, reference(owner=other, image="other", shard="02"))
    with api(settings, dagster_graphql_url=dagster.url) as client:
        started = [client.post(path).json()["run"]["started_by"] for path in (PATH, PATH.replace(OWNER, other))]
    assert started == ["dagster", "sensor"]
    assert len(dagster.launches) == 1


def test_a_run_that_cannot_be_noted_is_told_all_the_same(
    settings: Settings, connection: sa.Connection, dagster: DagsterService
) -> None:
    refuse = """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$full$$; END';"""
    connection.execute(sa.text(refuse))
    connection.execute(
        sa.text("CREATE TRIGGER refuse BEFORE UPDATE ON cdn_refreshes FOR EACH ROW EXECUTE FUNCTION refuse()")
    )
    with api(settings, dagster_graphql_url=dagster.url) as client:
        answer = client.post(PATH)
    assert answer.status_code == 202
    assert answer.json()["run"] == {"id": "run-1", "started_by": "dagster", "hint": None}


def test_how_the_last_refresh_stands_is_told_until_its_answer_and_after(
    client: httpx.Client, connection: sa.Connection
) -> None:
    assert client.get(PATH).status_code == 404
    client.post(PATH)
    waiting = client.get(PATH).json()
    assert (waiting["status"], waiting["answer"], waiting["finished_at"]) == ("queued", None, None)
    answer(connection, RefreshAnswer.PRIVATE)
    finished = client.get(PATH).json()
    assert (finished["status"], finished["answer"], finished["run"]["id"]) == ("finished", "private", "some run")
    assert datetime.fromisoformat(finished["finished_at"]) > datetime.fromisoformat(finished["requested_at"])


@pytest.mark.parametrize("known", RefreshAnswer)
def test_every_answer_has_words(client: httpx.Client, connection: sa.Connection, known: RefreshAnswer) -> None:
    client.post(PATH)
    answer(connection, known)
    assert len(client.get(PATH).json()["words"]) > 20


def test_a_profile_rests_after_its_refresh_and_the_answer_says_how_long(
    client: httpx.Client, connection: sa.Connection
) -> None:
    client.post(PATH)
    answer(connection, RefreshAnswer.ANSWERED)
    refused = client.post(PATH)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert 0 < int(refused.headers["retry-after"]) <= 600
    assert f"Ask again in {refused.headers['retry-after']} s." in refused.json()["detail"]


def test_unknown_and_erased_profiles_are_not_found_and_ill_formed_ids_are_not_valid(
    client: httpx.Client, connection: sa.Connection
) -> None:
    assert client.post(PATH.replace(OWNER, str(uuid.uuid4()))).status_code == 404
    assert client.post(PATH.replace(OWNER, "somebody")).status_code == 422
    set_owner_tombstone(connection, INSTAGRAM, OWNER)
    refused = client.post(PATH)
    assert refused.status_code == 404
    assert "erased" in refused.json()["detail"]


def test_half_of_the_providers_budget_is_left_to_the_nights(settings: Settings) -> None:
    assert limits_of(settings).per_day == 2_000  # nobody's budget, but runs
    configured = with_settings(settings, decodo_auth_token="t", decodo_requests_per_day=1001)
    assert limits_of(configured).per_day == 500


def test_the_openapi_document_names_every_answer(client: httpx.Client) -> None:
    routes = client.get("/openapi.json").json()["paths"]["/api/v1/creators/ig/{profile_id}/media/refresh"]
    assert routes["post"]["responses"].keys() == {"202", "404", "422", "429", "503"}
    assert routes["get"]["responses"].keys() == {"200", "404", "422", "503"}
