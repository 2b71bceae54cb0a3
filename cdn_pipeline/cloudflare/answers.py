"""What Cloudflare's answers say: their JSON, why it refuses, whether and when to ask again."""

from collections.abc import Callable
from typing import Any

import httpx

API_URL = "https://api.cloudflare.com/client/v4"
PASSING = frozenset({429, 500, 502, 503, 504})  # worth another attempt

_MAX_REASON = 400  # characters


class PassingError(Exception):
    """What is worth another attempt: at once, or after so many seconds."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


def retry_within(seconds: float) -> Callable[[Exception], bool | float]:
    """For `stamina`: tries again what passes, when Cloudflare wants it; not if that is later than this."""

    def delay(error: Exception) -> bool | float:
        if not isinstance(error, PassingError):
            return False
        if error.retry_after is None:
            return True
        return error.retry_after if error.retry_after <= seconds else False

    return delay


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The object that was answered; empty if it is anything else."""
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def errors_in(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors of an answer; a success has none, or null."""
    errors = answer.get("errors")
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def reason_in(answer: dict[str, Any]) -> str:
    """Cloudflare's own words."""
    words = [_words(error) for error in errors_in(answer)]
    return ", ".join(words)[:_MAX_REASON] or "without a reason"


def _words(error: dict[str, Any]) -> str:
    code = error.get("code")
    return f"{error.get('message')}" if code is None else f"{error.get('message')} ({code})"


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, if the header tells them."""
    header = response.headers.get("Retry-After", "")
    return float(header) if header.isdecimal() else None
