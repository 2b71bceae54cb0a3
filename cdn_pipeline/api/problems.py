"""Errors as RFC 9457 has them: `application/problem+json`, each with what to do."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cdn_pipeline.api.access import request_id
from cdn_pipeline.catalog.sessions import is_away

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_TITLES = {
    400: "The request cannot be understood",
    401: "The token is missing or wrong",
    404: "There is no such thing",
    405: "The method is not allowed here",
    409: "It contradicts what is there",
    413: "The body is too large",
    416: "The range is not within the file",
    422: "The request is not valid",
    429: "Too many requests",
    500: "Something went wrong here",
    503: "Not available just now",
}

RETRY_AFTER_SECONDS = 5  # a restart of Postgres takes as long

_RETRY_AFTER = {"Retry-After": {"description": "When to ask again, in seconds.", "schema": {"type": "integer"}}}
_HEADERS: Mapping[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "required": True, "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

_TOLD_IN_WORDS = 3  # parts of an invalid request; `errors` has them all

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class InvalidPart(BaseModel):
    """A part of the request that is not valid."""

    where: list[str] = Field(description="The way to it.", examples=[["body", "job_ids", "0"]])
    what: str = Field(description="What is wrong with it, without its value.")


class Problem(BaseModel):
    """What went wrong, for people and programs."""

    type: str = Field(default="about:blank", description="A URI that names the kind of problem.")
    title: str = Field(description="The kind of problem in a few words, the same for each status.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong this time, and what to do.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="The value of the header `X-Request-ID`: the logs have it too.")
    errors: list[InvalidPart] | None = Field(default=None, description="Of an invalid request: all that is wrong.")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route for the OpenAPI document."""
    return {
        status: {
            "description": _TITLES[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": _example(status)}},
            "headers": _HEADERS.get(status, {}),
        }
        for status in statuses
    }


def _example(status: int) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": _TITLES[status],
        "status": status,
        "detail": "what went wrong this time, and what to do",
        "instance": "/api/v1/…",
        "request_id": "6f9619ff8b86d011b42d00cf4fc964ff",
    }


def answer_with_problems(app: FastAPI) -> None:
    """Every error of the application becomes a problem."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(sa.exc.SQLAlchemyError, _database_error)
    app.add_exception_handler(Exception, _defect)


def _problem(
    request: Request,
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[InvalidPart] | None = None,
) -> JSONResponse:
    problem = Problem(
        title=_TITLES.get(status, "The request failed"),
        status=status,
        detail=detail,
        instance=request.url.path,
        request_id=request_id(),
        errors=errors,
    )
    return JSONResponse(
        problem.model_dump(mode="json", exclude_none=True),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type=MEDIA_TYPE,
    )


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    http = cast(HTTPException, error)
    headers, detail = dict(http.headers or {}), http.detail
    if http.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request)) or headers["Allow"]
        detail = f"Here are {headers['Allow']}."
    elif detail == HTTPStatus.NOT_FOUND.phrase:  # the router's own
        detail = "There is no such route: `/openapi.json` lists all, docs/api.md explains them."
    return _problem(request, http.status_code, detail, headers)


def _allowed(request: Request) -> list[str]:
    """The methods that any route answers at this path; Starlette names those of the first route alone."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    methods = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["HEAD", *methods] if "GET" in methods else methods


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    # Without the input: it may hold secrets, and may be what no JSON can say.
    errors = [
        InvalidPart(where=[str(part) for part in each["loc"]], what=each["msg"])
        for each in cast(RequestValidationError, error).errors()
    ]
    told = [f"{'.'.join(each.where)}: {each.what}" for each in errors[:_TOLD_IN_WORDS]]
    if errors[0].where == ["body"] and "json" not in request.headers.get("content-type", ""):
        told = ["The body has to come with `Content-Type: application/json`."]
    return _problem(request, 422, "; ".join(told), errors=errors)


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    if not is_unavailable(error):
        return await _defect(request, error)
    _log.warning("the catalog does not answer", extra={"reason": str(getattr(error, "orig", error))})
    return _problem(
        request,
        503,
        "The catalog does not answer; ask again in a few seconds.",
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def is_unavailable(error: Exception) -> bool:
    """Whether the catalog is away, has no connection left, or takes too long."""
    if isinstance(error, sa.exc.TimeoutError):
        return True
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state == "57014" or is_away(error)  # cancelled by the statement's time limit


async def _defect(request: Request, error: Exception) -> JSONResponse:
    _log.error("a request failed", exc_info=error)
    return _problem(request, 500, "The logs have the reason under this request's id.")


class DefectMiddleware:
    """Answers what the code did not expect. Starlette does so outside of all middleware: without id and headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request; if an answer has begun, it ends there, and the server cuts the connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            response = await _defect(Request(scope), error)
            if not has_begun:
                await response(scope, receive, send)
