"""Cloudflare's figures, through its GraphQL analytics API: requests of a zone, operations and storage of R2 buckets.

Figures of "adaptive" data sets are estimates where Cloudflare has sampled. How much of the past may be asked for, and
how much of it at once, is a matter of the zone's plan: `limits` says so, and `requests` asks accordingly.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import httpx
import stamina
from pydantic import SecretStr

from cdn_pipeline.cloudflare.answers import (
    API_URL,
    PASSING,
    PassingError,
    errors_in,
    json_of,
    reason_in,
    retry_after,
    retry_within,
)

FROM_CACHE = frozenset({"hit", "stale", "revalidated", "updating"})  # of what `CF-Cache-Status` says
_CACHEABLE = FROM_CACHE | {"miss", "expired"}  # the others (dynamic, bypass, none) never asked the cache
_PICTURE_STATUSES = frozenset({200, 206, 304})

_SHORTEST = timedelta(minutes=1)  # of a plan's longest span: 31 days in shorter ones would be 45,000 queries
_MAX_GROUPS = 10_000  # R2's; a zone's plan may allow fewer

_ATTEMPTS = 3
_PATIENCE_SECONDS = 20.0
_WORTH_A_RETRY = retry_within(_PATIENCE_SECONDS)
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class AnalyticsError(Exception):
    """Cloudflare tells no figures; the message has its reason and what to do, and never the token."""


class _PassingAnalyticsError(PassingError, AnalyticsError):
    """Worth another attempt."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the plan of a zone allows one query about its requests."""

    longest: timedelta  # from its beginning to its end
    furthest: timedelta  # how far it may look back
    groups: int  # in its answer


@dataclass(frozen=True, slots=True)
class Requests:
    """What clients asked of a host in some time: `cached` of the `cacheable` pictures came from the cache."""

    count: int
    edge_bytes: int
    cached: int
    cacheable: int
    sampled: bool

    @property
    def hit_ratio(self) -> float | None:
        """None if no picture was asked for."""
        return self.cached / self.cacheable if self.cacheable else None

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(
            self.count + other.count,
            self.edge_bytes + other.edge_bytes,
            self.cached + other.cached,
            self.cacheable + other.cacheable,
            self.sampled or other.sampled,
        )


NO_REQUESTS = Requests(0, 0, 0, 0, sampled=False)


@dataclass(frozen=True, slots=True)
class BucketOperations:
    """Operations on a bucket, by what they cost. Deletions are free, and so is what was not authorized."""

    class_a: int
    class_b: int


@dataclass(frozen=True, slots=True)
class BucketStorage:
    """What a bucket holds."""

    bytes: int
    objects: int


class Analytics:
    """Asks Cloudflare's analytics. A context manager.

    Every method raises `AnalyticsError` when Cloudflare cannot be reached, refuses, or answers in another shape than
    the documented one.
    """

    def __init__(self, token: SecretStr, *, api_url: str = API_URL) -> None:
        """`token` needs "Analytics: Read" for the zone and "Account Analytics: Read" for the account."""
        self._url = f"{api_url.rstrip('/')}/graphql"
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token.get_secret_value()}"}, timeout=_TIMEOUT, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def limits(self, zone_id: str) -> Limits:
        """What may be asked of a zone; raises `AnalyticsError` as well if its plan tells no figures of requests."""
        data = self._ask(_LIMITS, {"zoneTag": zone_id})
        with _as_documented():
            settings = _only(data["viewer"]["zones"])["settings"]["httpRequestsAdaptiveGroups"]
            if not settings["enabled"]:
                raise AnalyticsError("the zone's plan has no analytics of requests")
            limits = Limits(
                longest=timedelta(seconds=settings["maxDuration"]),
                furthest=timedelta(seconds=settings["notOlderThan"]),
                groups=min(settings["maxPageSize"], _MAX_GROUPS),
            )
        if limits.longest < _SHORTEST or limits.furthest <= timedelta() or limits.groups < 1:
            raise AnalyticsError("the zone's plan allows no question about its requests")
        return limits

    def requests(self, zone_id: str, host: str, since: datetime, until: datetime, limits: Limits) -> Requests:
        """What clients asked of the host: as many queries as the limits want, added up."""
        pieces = max(1, math.ceil((until - since) / limits.longest))
        moments = [since + (until - since) * piece / pieces for piece in range(pieces + 1)]
        variables = {"zoneTag": zone_id, "host": host}
        total = NO_REQUESTS
        for start, end in pairwise(moments):
            data = self._ask(_REQUESTS % limits.groups, variables | _span(start, end))
            with _as_documented():
                total += _requests(_groups(data["viewer"]["zones"], limits.groups))
        return total

    def operations(self, account_id: str, bucket: str, since: datetime, until: datetime) -> BucketOperations:
        """What was done to a bucket; Cloudflare remembers 31 days.

        Args:
            account_id: whose bucket it is.
            bucket: its name, with jurisdiction and underscore before it if it has one: `eu_pictures`.
            since: from then on.
            until: up to then.
        """
        data = self._ask(_OPERATIONS % _MAX_GROUPS, {"accountTag": account_id, "bucket": bucket} | _span(since, until))
        with _as_documented():
            billed = [
                (_class_of(group["dimensions"]["actionType"]), int(group["sum"]["requests"]))
                for group in _groups(data["viewer"]["accounts"], _MAX_GROUPS)
                if group["dimensions"]["responseStatusCode"] != 401
            ]
        by_class = {name: sum(count for found, count in billed if found == name) for name in "AB"}
        return BucketOperations(by_class["A"], by_class["B"])

    def storage(self, account_id: str, bucket: str, since: datetime, until: datetime) -> BucketStorage | None:
        """What a bucket held when it was last measured in that time; None if it was not. Arguments as `operations`."""
        data = self._ask(_STORAGE, {"accountTag": account_id, "bucket": bucket} | _span(since, until))
        with _as_documented():
            groups = _only(data["viewer"]["accounts"])["groups"]
            if not groups:
                return None
            latest = groups[0]["max"]
            return BucketStorage(latest["payloadSize"] + latest["metadataSize"], latest["objectCount"])

    def _ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        retries = stamina.retry_context(
            on=_WORTH_A_RETRY, attempts=_ATTEMPTS, timeout=_PATIENCE_SECONDS, wait_initial=0.5, wait_max=5.0
        )
        for attempt in retries:
            with attempt:
                return self._request({"query": query, "variables": variables})
        raise AssertionError("retry_context returns or raises")

    def _request(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = self._client.post(self._url, json=question)
        except httpx.TransportError as error:
            raise _PassingAnalyticsError(f"Cloudflare cannot be reached: {type(error).__name__}") from error
        answer = json_of(response)
        data = answer.get("data")
        if response.is_success and isinstance(data, dict) and not errors_in(answer):
            return data
        reason = f"Cloudflare answers {response.status_code} to a question about its figures: {reason_in(answer)}"
        wait = retry_after(response)
        # Who has asked too often is refused for five minutes, whatever he asks meanwhile.
        is_blocked = response.status_code == 429 and wait is None
        if not is_blocked and (response.status_code in PASSING or "try again later" in reason):
            raise _PassingAnalyticsError(reason, wait)
        if response.status_code in (401, 403) or _is_refusal(answer):
            reason += "; check CF_ZONE_ID, CF_ACCOUNT_ID, and that CF_API_TOKEN may read analytics of zone and account"
        raise AnalyticsError(reason)


def _is_refusal(answer: dict[str, Any]) -> bool:
    """A 200 may carry a refusal."""
    extensions = [error.get("extensions") for error in errors_in(answer)]
    return any(isinstance(each, dict) and each.get("code") == "authz" for each in extensions)


@contextmanager
def _as_documented() -> Iterator[None]:
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        missing = f", without {error}" if isinstance(error, KeyError) else ""
        raise AnalyticsError(f"Cloudflare's figures have another shape than documented{missing}") from error


def _only(found: list[dict[str, Any]]) -> dict[str, Any]:
    if not found:
        raise AnalyticsError("Cloudflare knows no such zone or account, or CF_API_TOKEN may not see it")
    return found[0]


def _groups(found: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The groups of an answer, all of them."""
    groups: list[dict[str, Any]] = _only(found)["groups"]
    if len(groups) >= limit:
        raise AnalyticsError(f"Cloudflare has more groups of figures than the {limit} that it tells at once")
    return groups


def _requests(groups: list[dict[str, Any]]) -> Requests:
    """Sums over groups by cache status and HTTP status."""
    pictures = [
        (group["dimensions"]["cacheStatus"], int(group["count"]))
        for group in groups
        if group["dimensions"]["edgeResponseStatus"] in _PICTURE_STATUSES
    ]
    return Requests(
        count=sum(int(group["count"]) for group in groups),
        edge_bytes=sum(int(group["sum"]["edgeResponseBytes"]) for group in groups),
        cached=sum(count for status, count in pictures if status in FROM_CACHE),
        cacheable=sum(count for status, count in pictures if status in _CACHEABLE),
        sampled=any(group["avg"]["sampleInterval"] > 1 for group in groups),
    )


def _class_of(action: str) -> str | None:
    """A (writes and lists), B (reads), or None (free). What Cloudflare may add counts as the dearer class."""
    if action.startswith(("Delete", "Abort")):
        return None
    return "B" if action.startswith(("Get", "Head", "UsageSummary")) else "A"


def _span(since: datetime, until: datetime) -> dict[str, str]:
    return {"start": _time(since), "end": _time(until)}


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


_LIMITS = """
query Limits($zoneTag: string!) {
  viewer { zones(filter: {zoneTag: $zoneTag}) { settings {
    httpRequestsAdaptiveGroups { enabled maxDuration notOlderThan maxPageSize }
  } } }
}
"""

_REQUESTS = """
query Requests($zoneTag: string!, $start: Time!, $end: Time!, $host: string!) {
  viewer { zones(filter: {zoneTag: $zoneTag}) {
    groups: httpRequestsAdaptiveGroups(
      limit: %d,
      filter: {
        datetime_geq: $start, datetime_lt: $end, clientRequestHTTPHost: $host, requestSource: "eyeball"
      }
    ) { count avg { sampleInterval } sum { edgeResponseBytes } dimensions { cacheStatus edgeResponseStatus } }
  } }
}
"""

_OPERATIONS = """
query Operations($accountTag: string!, $start: Time!, $end: Time!, $bucket: string!) {
  viewer { accounts(filter: {accountTag: $accountTag}) {
    groups: r2OperationsAdaptiveGroups(
      limit: %d, filter: {datetime_geq: $start, datetime_leq: $end, bucketName: $bucket}
    ) { sum { requests } dimensions { actionType responseStatusCode } }
  } }
}
"""

_STORAGE = """
query Storage($accountTag: string!, $start: Time!, $end: Time!, $bucket: string!) {
  viewer { accounts(filter: {accountTag: $accountTag}) {
    groups: r2StorageAdaptiveGroups(
      limit: 1, filter: {datetime_geq: $start, datetime_leq: $end, bucketName: $bucket}, orderBy: [datetime_DESC]
    ) { max { objectCount payloadSize metadataSize } dimensions { datetime } }
  } }
}
"""
