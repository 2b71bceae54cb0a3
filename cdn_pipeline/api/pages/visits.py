"""A visit: one request for a page, who makes it, and how it is answered. Errors are pages as well."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import sqlalchemy as sa
from fastapi import Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined

from cdn_pipeline.api.measured import VERSION
from cdn_pipeline.api.pages import words
from cdn_pipeline.api.pages.sessions import Message, Operator, forget_message, leave_message, message_left, signed_in
from cdn_pipeline.api.pages.sessions import is_from as is_form_from
from cdn_pipeline.api.pages.static_files import static_file
from cdn_pipeline.api.problems import is_unavailable
from cdn_pipeline.api.serving import Serving

_MAX_FORM_BYTES = 10_000

_environment = Environment(
    loader=PackageLoader(__package__ or ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(words.FILTERS)
_environment.globals.update(static=lambda name: static_file(name).url, version=VERSION)


class SignInFirstError(Exception):
    """The page or the action is for operators."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request. `operator` is None if nobody is signed in."""

    request: Request
    serving: Serving
    operator: Operator | None

    @property
    def path(self) -> str:
        """Path and query: where to come back to."""
        query = self.request.url.query
        return self.request.url.path + (f"?{query}" if query else "")

    @property
    def can_sign_in(self) -> bool:
        """Whether a token is configured."""
        return self.serving.settings.admin_api_token is not None

    @property
    def dagster_url(self) -> str | None:
        """Where Dagster's own pages are, without a trailing slash; None: nobody has said so."""
        url = self.serving.settings.dagster_graphql_url
        return None if url is None else url.rstrip("/").removesuffix("/graphql")

    def require_reader(self) -> None:
        """Stories of images are for operators where there is a token. Without one they are told without source URLs.

        Raises:
            SignInFirstError: there is a token, and nobody is signed in.
        """
        if self.can_sign_in and self.operator is None:
            raise SignInFirstError

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page, with the message that the last action has left."""
        settings = self.serving.settings
        message = values.pop("message", None) or message_left(self.request, settings)
        text = _environment.get_template(template).render(visit=self, message=message, **values)
        response = HTMLResponse(text, status, _headers(settings.public_base_url))
        if message:
            forget_message(response)
        return response

    def go(self, path: str, message: Message | None = None) -> Response:
        """To another page of ours, which says the message."""
        response = RedirectResponse(local_path(path), 303, {"Cache-Control": "no-store"})
        if message and self.can_sign_in:
            leave_message(self.request, response, self.serving.settings, message)
        return response


def local_path(path: str) -> str:
    """The path, if it leads to a page of ours; else the first page."""
    parts = urlsplit(path.replace("\\", "/"))
    is_ours = not parts.scheme and not parts.netloc and path.startswith("/") and path.isprintable()
    return path if is_ours and not path.startswith(("//", "/\\")) else "/"


def _headers(public_base_url: str) -> Mapping[str, str]:
    public = urlsplit(public_base_url)
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": f"'self' data: {public.scheme}://{public.netloc}",  # pictures, and placeholders until they are there
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }


def _visit(request: Request) -> Visit:
    serving: Serving = request.app.state.serving
    return Visit(request, serving, signed_in(request, serving.settings))


async def _visiting(request: Request) -> Visit:
    return _visit(request)  # in no thread: those may all be waiting for the catalog


Visited = Annotated[Visit, Depends(_visiting)]
"""A route's parameter of this type is the visit."""

Form = Mapping[str, str]


async def read_form(request: Request) -> Form:
    """The fields of a form as browsers send it, the last of each name.

    Raises:
        HTTPException: it is no form, or larger than any of ours.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_FORM_BYTES:
            raise HTTPException(413, "The form is larger than any of ours.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise HTTPException(400, "This is no form.") from None


async def _operators_form(visit: Visited) -> Form:
    if visit.operator is None:
        raise SignInFirstError
    form = await read_form(visit.request)
    if not is_form_from(visit.operator, form.get("csrf", "")):
        raise HTTPException(403, "The form is of another session: go back, reload the page and try again.")
    return form


OperatorsForm = Annotated[Form, Depends(_operators_form)]
"""A route's parameter of this type is a form that the operator who is signed in has sent."""


class PageRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, and what becomes of its errors."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(request)
            except SignInFirstError:
                visit = _visit(request)
                back = visit.path if request.method == "GET" else "/"
                return visit.go(f"/sign-in?{urlencode({'next': back})}")
            except RequestValidationError:
                return _error_page(request, 404, "There is no such page.")
            except HTTPException as error:
                return _error_page(request, error.status_code, str(error.detail))
            except sa.exc.SQLAlchemyError as error:
                if not is_unavailable(error):
                    raise
                return _error_page(request, 503, "The catalog does not answer; ask again in a few seconds.")

        return handle


def _error_page(request: Request, status: int, detail: str) -> Response:
    return _visit(request).page("error.html", status, detail=detail)
