"""A stand-in for Cloudflare's GraphQL analytics: answers of the documented shapes, within the limits of a plan."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

from pydantic import SecretStr

from cdn_pipeline.cloudflare.analytics import Analytics
from cdn_pipeline.demo.serving import serving_handler
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID

ACCOUNT_ID = "fedcba9876543210fedcba9876543210"
DAY = 86_400

_DATA_SET = re.compile(r"(httpRequestsAdaptiveGroups|r2OperationsAdaptiveGroups|r2StorageAdaptiveGroups)[ (]")

Answer = tuple[int, dict[str, str], Any]


@dataclass
class Figures:
    """What it knows, and what it was asked: a name per question, with its variables."""

    requests: list[dict[str, Any]] = field(default_factory=list)  # with "host" and "at" beside the group's fields
    operations: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by bucket
    storage: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by bucket, the latest first
    longest: int = DAY  # what the plan allows, in seconds
    furthest: int = 90 * DAY
    page: int = 10_000
    enabled: bool = True
    answers: list[Answer] = field(default_factory=list)  # given first
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/client/v4"

    def client(self, token: str = TOKEN) -> Analytics:
        return Analytics(SecretStr(token), api_url=self.api_url)

    def answer(self, path: str, authorization: str, question: dict[str, Any]) -> Answer:
        query, variables = question["query"], question["variables"]
        found = _DATA_SET.search(query)
        assert found
        name = "settings" if "settings" in query else found[1]
        self.asked.append((name, variables))
        if self.answers:
            return self.answers.pop(0)
        if path != "/client/v4/graphql" or authorization != f"Bearer {TOKEN}":
            return 403, {}, {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]}
        match name:
            case "settings":
                return self._of_zone(variables, {"settings": {"httpRequestsAdaptiveGroups": self._settings()}})
            case "httpRequestsAdaptiveGroups":
                return self._requests(variables)
            case "r2OperationsAdaptiveGroups":
                return self._of_account(variables, self.operations.get(variables["bucket"], []))
            case _:
                return self._of_account(variables, self.storage.get(variables["bucket"], [])[:1])

    def _settings(self) -> dict[str, Any]:
        return {
            "enabled": self.enabled,
            "maxDuration": self.longest,
            "notOlderThan": self.furthest,
            "maxPageSize": self.page,
        }

    def _requests(self, variables: dict[str, Any]) -> Answer:
        start, end = (_time(variables[name]) for name in ("start", "end"))
        if (end - start).total_seconds() > self.longest:
            return 400, {}, refused("query time range is too large: cannot request a time range wider than 1d")
        if start < datetime.now(UTC) - timedelta(seconds=self.furthest):
            return 400, {}, refused(f"cannot request data older than {self.furthest}s")
        groups = [
            {name: value for name, value in group.items() if name not in ("host", "at")}
            for group in self.requests
            if group["host"] == variables["host"] and start <= group["at"] < end
        ]
        return self._of_zone(variables, {"groups": groups[: self.page]})

    def _of_zone(self, variables: dict[str, Any], zone: dict[str, Any]) -> Answer:
        zones = [zone] if variables["zoneTag"] == ZONE_ID else []
        return 200, {}, {"data": {"viewer": {"zones": zones}}, "errors": None}

    def _of_account(self, variables: dict[str, Any], groups: list[dict[str, Any]]) -> Answer:
        accounts = [{"groups": groups}] if variables["accountTag"] == ACCOUNT_ID else []
        return 200, {}, {"data": {"viewer": {"accounts": accounts}}, "errors": None}


def refused(message: str, **extensions: str) -> dict[str, Any]:
    """An error as GraphQL tells it: with a status of 200 as well."""
    error = {"message": message, "path": None, "extensions": {"timestamp": "2026-01-01T00:00:00Z", **extensions}}
    return {"data": None, "errors": [error]}


def asked_for(count: int, cache: str, ago: timedelta, *, status: int = 200, interval: float = 1.0) -> dict[str, Any]:
    """Requests of one kind, of 1,000 bytes each."""
    return {
        "host": "cdn.example",
        "at": datetime.now(UTC) - ago,
        "count": count,
        "avg": {"sampleInterval": interval},
        "sum": {"edgeResponseBytes": 1000 * count},
        "dimensions": {"cacheStatus": cache, "edgeResponseStatus": status},
    }


def done(action: str, count: int, status: int = 200) -> dict[str, Any]:
    """Operations of one kind on a bucket."""
    return {"sum": {"requests": count}, "dimensions": {"actionType": action, "responseStatusCode": status}}


def held(payload: int, objects: int, metadata: int = 0) -> dict[str, Any]:
    """What a bucket held at some time."""
    sizes = {"objectCount": objects, "payloadSize": payload, "metadataSize": metadata}
    return {"max": sizes, "dimensions": {"datetime": "2026-01-01T00:00:00Z"}}


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@contextmanager
def running_figures() -> Iterator[Figures]:
    """The analytics behind a real server on this machine."""
    figures = Figures()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, answer = figures.answer(self.path, self.headers["Authorization"], question)
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving_handler(Handler) as figures.port:
        yield figures
