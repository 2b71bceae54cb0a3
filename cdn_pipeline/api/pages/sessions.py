"""Who is signed in: a cookie that names the operator, signed with the admin token, good for a shift.

The cookie holds no secret, only the proof that whoever has it knew the token. Another token ends every session. Forms
carry the session's own `csrf`, which no other site can read, besides the cookie's `SameSite=Strict`.
"""

import hmac
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from cdn_pipeline.settings import Settings

SESSION_LASTS = timedelta(hours=12)  # a shift
_MESSAGE_LASTS = timedelta(minutes=1)  # from the answer to a form to the page after it

_SESSION, _MESSAGE = "cdn_pipeline_session", "cdn_pipeline_message"

_NAME = re.compile(r"[!-~]([ -~]{0,98}[!-~])?")  # what the API's header X-Actor takes, but for spaces around it


@dataclass(frozen=True, slots=True)
class Operator:
    """Who is signed in. `name` is for the audit; `csrf` is what every form of this session sends back."""

    name: str
    csrf: str


@dataclass(frozen=True, slots=True)
class Message:
    """What an action came to, for the next page to say."""

    words: str
    is_bad: bool = False


def is_name(name: str) -> bool:
    """Whether the audit takes it."""
    return _NAME.fullmatch(name) is not None


def is_token(settings: Settings, given: str) -> bool:
    """Whether this is the admin token."""
    token = settings.admin_api_token
    return token is not None and hmac.compare_digest(given.encode(), token.get_secret_value().encode())


def is_from(operator: Operator, csrf: str) -> bool:
    """Whether a form was written for this session."""
    return hmac.compare_digest(csrf.encode(), operator.csrf.encode())


def sign_in(request: Request, response: Response, settings: Settings, name: str) -> None:
    """Begins a session; who calls has looked at the token."""
    operator = Operator(name, secrets.token_urlsafe(16))
    _put(request, response, settings, _SESSION, asdict(operator), SESSION_LASTS)


def sign_out(response: Response) -> None:
    """Ends the session in this browser."""
    response.delete_cookie(_SESSION, path="/")


def signed_in(request: Request, settings: Settings) -> Operator | None:
    """Who is signed in; None: nobody, or not any more."""
    found = _get(request, settings, _SESSION, SESSION_LASTS)
    return None if found is None else Operator(**found)


def leave_message(request: Request, response: Response, settings: Settings, message: Message) -> None:
    """For the next page of this browser."""
    _put(request, response, settings, _MESSAGE, asdict(message), _MESSAGE_LASTS)


def message_left(request: Request, settings: Settings) -> Message | None:
    """What was left for this page."""
    found = _get(request, settings, _MESSAGE, _MESSAGE_LASTS)
    return None if found is None else Message(**found)


def forget_message(response: Response) -> None:
    """Once it was said."""
    response.delete_cookie(_MESSAGE, path="/")


def _put(
    request: Request, response: Response, settings: Settings, name: str, value: dict[str, Any], lasts: timedelta
) -> None:
    serializer = _serializer(settings, name)
    assert serializer, "nobody is signed in without a token"
    response.set_cookie(
        name,
        str(serializer.dumps(value)),
        max_age=int(lasts.total_seconds()),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _get(request: Request, settings: Settings, name: str, lasts: timedelta) -> dict[str, Any] | None:
    serializer, cookie = _serializer(settings, name), request.cookies.get(name)
    if serializer is None or cookie is None:
        return None
    try:
        value: dict[str, Any] = serializer.loads(cookie, max_age=int(lasts.total_seconds()))
    except BadData:  # of another token, too old, or made up
        return None
    return value


def _serializer(settings: Settings, name: str) -> URLSafeTimedSerializer | None:
    """The cookie's name is the salt, so that one is never taken for the other."""
    token = settings.admin_api_token
    return None if token is None else URLSafeTimedSerializer(token.get_secret_value(), salt=name)
