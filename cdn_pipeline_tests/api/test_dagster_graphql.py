"""The API starts a run through Dagster's GraphQL, or says in the log why not."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from aiohttp import web

from cdn_pipeline.api import dagster_graphql
from cdn_pipeline.api.dagster_graphql import start_run
from cdn_pipeline.orchestration.run_requests import Covered, Lane, plan_runs
from cdn_pipeline.orchestration.sensors import _request
from cdn_pipeline_tests.api.dagster_service import DagsterService, running_dagster
from cdn_pipeline_tests.orchestration.test_run_requests import due_work


@pytest.fixture
def dagster() -> Iterator[DagsterService]:
    with running_dagster() as service:
        yield service


def start(url: str) -> str | None:
    return asyncio.run(start_run(url, "05"))


def test_a_run_is_launched_where_the_job_is(dagster: DagsterService) -> None:
    assert start(dagster.url) == "run-1"
    [launch] = dagster.launches
    assert launch["selector"] == {
        "repositoryLocationName": "here",
        "repositoryName": "__repository__",
        "jobName": "publish_images",
    }


def test_it_is_the_run_that_the_sensor_would_ask_for(dagster: DagsterService) -> None:
    start(dagster.url)
    [launch] = dagster.launches
    now = datetime(2026, 3, 1, tzinfo=UTC)
    [planned] = plan_runs(due_work(now=now, refreshes=frozenset({"05"})), Covered(), shards_per_run=16)
    asked = _request(planned)
    assert {tag["key"]: tag["value"] for tag in launch["executionMetadata"]["tags"]} == asked.tags
    assert launch["runConfigData"]["ops"] == asked.run_config["ops"]
    assert planned.lane is Lane.URGENT


def error(service: DagsterService) -> None:
    service.repositories = {"__typename": "PythonError", "message": "the code location does not load"}


def elsewhere(service: DagsterService) -> None:
    service.repositories["nodes"].pop()


def refused(service: DagsterService) -> None:
    service.launched = {"__typename": "RunConfigValidationInvalid", "errors": [{"message": "unknown field"}]}


def broken(service: DagsterService) -> None:
    service.reply = web.Response(status=502, text="<html>")


def another(service: DagsterService) -> None:
    service.reply = web.json_response({"errors": [{"message": "Cannot query field"}]}, status=400)


def odd(service: DagsterService) -> None:
    service.reply = web.json_response([1, 2])


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (error, "the code location does not load"),
        (elsewhere, "no code location has the job publish_images"),
        (refused, "unknown field"),
        (broken, "JSONDecodeError"),
        (another, "Cannot query field"),
        (odd, "status 200"),
    ],
)
def test_whatever_dagster_says_instead_is_logged_and_left_to_the_sensor(
    dagster: DagsterService,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[DagsterService], None],
    words: str,
) -> None:
    trouble(dagster)
    assert start(dagster.url) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert words in vars(record)["reason"]


def test_a_dagster_that_does_not_answer_is_left_to_the_sensor(
    dagster: DagsterService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dagster_graphql, "_SECONDS", 0.2)
    dagster.hangs_for = 0.6
    assert start(dagster.url) is None
    assert "Timeout" in vars(caplog.records[0])["reason"]
    assert start("http://127.0.0.1:1/graphql") is None
    assert start("no url") is None
    assert len(caplog.records) == 3
