"""Purging of Cloudflare's cache (API v4, `purge_cache`): by prefix, and by URL."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx
import stamina
from pydantic import SecretStr

from cdn_pipeline.cloudflare.answers import (
    API_URL,
    PASSING,
    PassingError,
    json_of,
    reason_in,
    retry_after,
    retry_within,
)

# Cloudflare's pages name 30 for prefixes and 100 for anything on every plan.
MAX_PREFIXES = 30
MAX_FILES = 100

# On the free plan 25 prefix requests may come at once and 5 in a minute after that.
_ATTEMPTS = 4
_PATIENCE_SECONDS = 90.0
_WORTH_A_RETRY = retry_within(60.0)
_TIMEOUT = httpx.Timeout(20.0, connect=5.0)


class PurgeFailedError(Exception):
    """Cloudflare did not purge; the message has its reason and what to do, and never the token."""


class _PassingPurgeFailedError(PassingError, PurgeFailedError):
    """Worth another attempt."""


class CachePurge:
    """Asks Cloudflare to forget what it has cached of one zone. An asynchronous context manager."""

    def __init__(self, zone_id: str, token: SecretStr, *, api_url: str = API_URL) -> None:
        """`token` needs the permission "Cache Purge" for the zone."""
        self._url = f"{api_url.rstrip('/')}/zones/{zone_id}/purge_cache"
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token.get_secret_value()}"}, timeout=_TIMEOUT, trust_env=False
        )

    async def __aenter__(self) -> "CachePurge":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def purge_prefixes(self, prefixes: Sequence[str]) -> None:
        """Purges all that lies under these, whatever headers it was requested with.

        Args:
            prefixes: host and path without scheme and without a slash at the end, such as `img.example/th/ig/OWNER`:
                they match whole path segments.

        Raises:
            PurgeFailedError: Cloudflare cannot be reached or refuses; some of them may have been purged.
        """
        for some in _batches(sorted(set(prefixes)), MAX_PREFIXES):
            await self._purge({"prefixes": list(some)})

    async def purge_files(self, urls: Sequence[str], origins: Sequence[str] = ()) -> None:
        """Purges these URLs, as they were requested without an `Origin`, and with each of the given ones.

        `Origin` is part of the cache's key, so each page that draws pictures on a canvas makes a copy of its own: where
        the pages are not known, purge by prefix.

        Raises:
            PurgeFailedError: Cloudflare cannot be reached or refuses; some of them may have been purged.
        """
        copies = [{"url": url, "headers": {"Origin": origin}} for url in urls for origin in origins]
        for some in _batches([*urls, *copies], MAX_FILES):
            await self._purge({"files": list(some)})

    async def _purge(self, what: dict[str, Any]) -> None:
        retries = stamina.retry_context(
            on=_WORTH_A_RETRY, attempts=_ATTEMPTS, timeout=_PATIENCE_SECONDS, wait_initial=0.5, wait_max=10.0
        )
        async for attempt in retries:
            with attempt:
                await self._request(what)

    async def _request(self, what: dict[str, Any]) -> None:
        try:
            response = await self._client.post(self._url, json=what)
        except httpx.TransportError as error:
            raise _PassingPurgeFailedError(f"Cloudflare cannot be reached: {type(error).__name__}") from error
        answer = json_of(response)
        if response.is_success and answer.get("success") is True:
            return
        reason = f"Cloudflare answers {response.status_code} to the purge: {reason_in(answer)}"
        if response.status_code in PASSING:
            raise _PassingPurgeFailedError(reason, retry_after(response))
        if response.status_code in (400, 401, 403, 404):
            reason += "; check CF_ZONE_ID, and that CF_API_TOKEN may purge the cache of this zone"
        raise PurgeFailedError(reason)


def _batches(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (things[start : start + size] for start in range(0, len(things), size))
