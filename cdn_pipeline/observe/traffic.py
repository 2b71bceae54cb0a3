"""What Cloudflare says of our traffic: hit ratio, requests, and what the buckets are asked and hold."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import urlsplit

from cdn_pipeline.cloudflare.analytics import Analytics, AnalyticsError, Limits, Requests
from cdn_pipeline.observe.times import DAY, MONTH
from cdn_pipeline.settings import Settings

KEPT_SECONDS = 300  # a read takes up to 35 queries, of the 300 that Cloudflare answers in this time

_MARGIN = timedelta(minutes=5)  # of what may be looked back on, which moves while we ask
_R2_HOST = ".r2.cloudflarestorage.com"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Figures of the CDN's host and of our buckets, as Cloudflare counts them. None: not available.

    `hit_ratio` (0 to 1) and `requests_1d` are of the last 24 hours, `_30d` of the last 30 days; a plan that remembers
    fewer days tells none of the latter. `sampled`: whether requests are estimates. `problem` says in words what keeps
    figures from being available, if something does.
    """

    hit_ratio: float | None = None
    requests_1d: int | None = None
    requests_30d: int | None = None
    edge_bytes_30d: int | None = None
    class_a_operations: int | None = None  # on the buckets in 30 days, by what R2 bills
    class_b_operations: int | None = None
    storage_bytes: int | None = None
    storage_objects: int | None = None
    sampled: bool | None = None
    problem: str | None = None


def read_traffic(settings: Settings) -> Traffic | None:
    """Asks Cloudflare, or tells what it has said within the last five minutes.

    None: not configured (`CF_API_TOKEN`, `CF_ZONE_ID`, `CF_ACCOUNT_ID`). It may take some seconds, and a minute when
    Cloudflare is away.
    """
    if not (settings.cf_api_token and settings.cf_zone_id and settings.cf_account_id):
        return None
    return _read_traffic(settings, int(time.monotonic() // KEPT_SECONDS))


@lru_cache(maxsize=1)
def _read_traffic(settings: Settings, _period: int) -> Traffic:
    assert settings.cf_api_token
    with Analytics(settings.cf_api_token, api_url=settings.cf_api_url) as analytics:
        reading = _Reading(
            analytics,
            zone_id=settings.cf_zone_id or "",
            account_id=settings.cf_account_id or "",
            host=urlsplit(settings.public_base_url).hostname or "",
            buckets=_buckets(settings),
            now=datetime.now(UTC).replace(microsecond=0),
        )
        return reading.traffic()


@dataclass(frozen=True, slots=True)
class _Reading:
    """Asks for all figures as of one moment."""

    analytics: Analytics
    zone_id: str
    account_id: str
    host: str
    buckets: Sequence[str]
    now: datetime

    def traffic(self) -> Traffic:
        """Whatever of it is available."""
        traffic = Traffic()
        problems: list[str] = []
        for add in (self._with_requests, self._with_operations, self._with_storage):
            try:
                traffic = add(traffic)
            except AnalyticsError as error:
                problems.append(str(error))
        return replace(traffic, problem="; ".join(dict.fromkeys(problems)) or None)

    def _with_requests(self, traffic: Traffic) -> Traffic:
        limits = self.analytics.limits(self.zone_id)
        day = self._requests(DAY, timedelta(), limits)
        traffic = replace(traffic, hit_ratio=day.hit_ratio, requests_1d=day.count, sampled=day.sampled)
        if limits.furthest < MONTH:
            return traffic
        month = day + self._requests(MONTH, DAY, limits)
        return replace(traffic, requests_30d=month.count, edge_bytes_30d=month.edge_bytes, sampled=month.sampled)

    def _requests(self, since: timedelta, until: timedelta, limits: Limits) -> Requests:
        since = min(since, limits.furthest - _MARGIN)
        return self.analytics.requests(self.zone_id, self.host, self.now - since, self.now - until, limits)

    def _with_operations(self, traffic: Traffic) -> Traffic:
        if not self.buckets:
            return traffic
        since = self.now - MONTH
        found = [self.analytics.operations(self.account_id, bucket, since, self.now) for bucket in self.buckets]
        return replace(
            traffic,
            class_a_operations=sum(operations.class_a for operations in found),
            class_b_operations=sum(operations.class_b for operations in found),
        )

    def _with_storage(self, traffic: Traffic) -> Traffic:
        since = self.now - MONTH
        found = [self.analytics.storage(self.account_id, bucket, since, self.now) for bucket in self.buckets]
        measured = [storage for storage in found if storage is not None]
        if not measured or len(measured) < len(found):  # part of it would look like less
            return traffic
        return replace(
            traffic,
            storage_bytes=sum(storage.bytes for storage in measured),
            storage_objects=sum(storage.objects for storage in measured),
        )


def _buckets(settings: Settings) -> list[str]:
    """Our buckets as Cloudflare's analytics name them: those of a jurisdiction carry it before an underscore."""
    host = urlsplit(settings.s3_endpoint_url or "").hostname or ""
    account = host.removesuffix(_R2_HOST)
    jurisdiction = account.partition(".")[2] if host.endswith(_R2_HOST) else ""
    names = [urlsplit(url).netloc for url in (settings.objects_url, settings.originals_url) if url.startswith("s3://")]
    return [f"{jurisdiction}_{name}" if jurisdiction else name for name in names]
