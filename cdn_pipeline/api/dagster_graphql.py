"""Starts runs through Dagster's GraphQL, at its webserver. Whatever goes wrong, the sensor starts the run."""

import asyncio
import logging
from typing import Any

import httpx

_log = logging.getLogger(__name__)

_SECONDS = 2.0  # a user waits for the answer
_SHOWN = 500  # characters of an answer that is none

_JOB = "publish_images"

_REPOSITORIES = """
query Repositories {
  repositoriesOrError {
    __typename
    ... on RepositoryConnection { nodes { name location { name } jobs { name } } }
    ... on PythonError { message }
  }
}
"""

_LAUNCH = """
mutation Launch($executionParams: ExecutionParams!) {
  launchRun(executionParams: $executionParams) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PythonError { message }
  }
}
"""

# As the sensor asks for it: what has changed, before everything else.
_RUN_CONFIG = {"ops": {"source_images": {"config": {"changed_only": True}}}}
_TAGS = {"lane": "urgent", "dagster/priority": "10"}


class _NotStartedError(Exception):
    """Dagster's answer is not that of a run; the message says what it was."""


async def start_run(url: str, shard: str) -> str | None:
    """The id of a new run of a shard, which need not have begun; None if it was not started, and the log says why.

    Args:
        url: Dagster's GraphQL, such as `http://127.0.0.1:3000/graphql`.
        shard: whose images the run mirrors.
    """
    try:
        async with asyncio.timeout(_SECONDS), httpx.AsyncClient(trust_env=False) as client:
            job = await _find_job(client, url)
            return await _launch(client, url, job, {**_TAGS, "dagster/partition": shard})
    except Exception as error:  # of whatever kind: the refresh is open, and the sensor looks every 20 s
        reason = f"{type(error).__name__}: {error}"
        _log.warning("Dagster did not start a run, so the sensor will", extra={"reason": reason, "shard": shard})
        return None


async def _find_job(client: httpx.AsyncClient, url: str) -> dict[str, str]:
    """Where the job is: a deployment may call its code location what it likes."""
    found = (await _ask(client, url, _REPOSITORIES))["repositoriesOrError"]
    for repository in found.get("nodes", ()):
        if any(job["name"] == _JOB for job in repository["jobs"]):
            return {
                "repositoryLocationName": repository["location"]["name"],
                "repositoryName": repository["name"],
                "jobName": _JOB,
            }
    raise _NotStartedError(f"no code location has the job {_JOB}: {found.get('message', found['__typename'])}")


async def _launch(client: httpx.AsyncClient, url: str, job: dict[str, str], tags: dict[str, str]) -> str:
    parameters = {
        "selector": job,
        "runConfigData": _RUN_CONFIG,
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    launched = (await _ask(client, url, _LAUNCH, executionParams=parameters))["launchRun"]
    if launched["__typename"] != "LaunchRunSuccess":
        raise _NotStartedError(str(launched))
    return str(launched["run"]["runId"])


async def _ask(client: httpx.AsyncClient, url: str, query: str, **variables: Any) -> Any:
    answer = await client.post(url, json={"query": query, "variables": variables})
    body = answer.json()
    if not isinstance(body, dict) or not body.get("data"):
        raise _NotStartedError(f"status {answer.status_code}: {str(body)[:_SHOWN]}")
    return body["data"]
