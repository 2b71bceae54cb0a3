"""Whether Cloudflare knows a token: asked of the user's tokens, then of the account's own."""

import httpx
from pydantic import SecretStr

from cdn_pipeline.cloudflare.answers import API_URL, json_of, reason_in

_TIMEOUT = httpx.Timeout(10.0, connect=5.0)


class TokenUnknownError(Exception):
    """Cloudflare does not know the token, or cannot be asked; the message has its reason, and never the token."""


def token_status(token: SecretStr, *, account_id: str | None = None, api_url: str = API_URL) -> str:
    """How the token stands: `active`, `disabled` or `expired`. What it permits is another question.

    A token that belongs to an account and to no user is only known there: `account_id`.

    Raises:
        TokenUnknownError: it is none of theirs, or Cloudflare cannot be reached.
    """
    owners = ["user", *([f"accounts/{account_id}"] if account_id else [])]
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    reasons = []
    with httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=False) as client:
        for owner in owners:
            try:
                response = client.get(f"{api_url.rstrip('/')}/{owner}/tokens/verify")
            except httpx.TransportError as error:
                raise TokenUnknownError(f"Cloudflare cannot be reached: {type(error).__name__}") from error
            answer = json_of(response)
            result = answer.get("result")
            if response.is_success and isinstance(result, dict):
                return str(result.get("status"))
            reasons.append(f"{response.status_code}: {reason_in(answer)}")
    raise TokenUnknownError(f"Cloudflare answers {'; '.join(reasons)}")
