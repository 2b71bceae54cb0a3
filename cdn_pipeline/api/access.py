"""What every request leaves behind: an id, a line in the log, and its place in the metrics."""

import contextvars
import json
import logging
import re
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("cdn_pipeline.access")

_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # what callers send goes into logs
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # seconds


def request_id() -> str:
    """The id of the request that is being answered; `-` outside of one."""
    return _request_id.get()


class AccessMiddleware:
    """Gives each request an id (the caller's `X-Request-ID` if it is sane), logs it, and counts it by route."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._seconds = Histogram(
            "cdn_pipeline_http_request_seconds",
            "Seconds that requests took, by method, route template and status.",
            ("method", "route", "status"),
            registry=registry,
            buckets=_BUCKETS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        token = _request_id.set(given if _SANE_ID.fullmatch(given) else uuid4().hex)
        status, started = 500, time.perf_counter()
        answered = started

        async def sending(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id()
            await send(message)
            answered = time.perf_counter()  # what goes on behind an answer is nobody's wait

        try:
            await self._app(scope, receive, sending)
        finally:
            self._note(scope, status, answered - started)
            _request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._seconds.labels(method, _route(scope), status).observe(seconds)
        _log.info(
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 1),
            },
        )


def _route(scope: Scope) -> str:
    """The template of the route, so that there are as many labels as routes."""
    if scope.get("root_path") or scope["path"].startswith("/th/"):
        return "/th"
    return getattr(scope.get("route"), "path", "unknown")


class JsonLines(logging.Formatter):
    """A line of JSON for each record, with the request's id."""

    def format(self, record: logging.LogRecord) -> str:
        """The record and what was given with it as `extra`."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id(),
            **{name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD},
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        "cdn_pipeline": {"level": "INFO"},
        "uvicorn": {"level": "INFO"},
        "uvicorn.access": {"level": "WARNING"},  # ours says more
    },
}
"""Logging of `cdn-pipeline serve`."""
