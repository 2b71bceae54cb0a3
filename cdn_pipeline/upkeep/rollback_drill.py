"""A rollback, rehearsed: the CDN is switched off, the running API watched until it answers legacy URLs, and on again.

The switch carries an expiry, and is undone whatever happens. So the worst that a drill can do, killed at any instant,
is to have frontends show legacy URLs until it would have been over.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.hosts import Hosts, HostShut
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.client import Downloader
from cdn_pipeline.fetch.hosts import host_of
from cdn_pipeline.queue.delivery_policy import (
    DeliveryPolicy,
    has_cdn_urls,
    read_policy,
    switch_back,
    switch_off_if_on,
)
from cdn_pipeline.queue.retries import longest_wait_in_run
from cdn_pipeline.settings import Settings

PROFILES = 20  # 5 answers of the API's would show it as well; more pictures tell more of legacy URLs
CACHED_SECONDS = 240  # that caches may keep an answer of the API: what frontends see is later by so much at most
LIMIT_SECONDS = 300  # that a rollback may take, caches included
ALIVE_ENOUGH = 0.95  # of the legacy URLs that have not expired: what sources refuse now and then is no fault of ours

_MOST_OWNERS = 2000  # looked through for some that have CDN URLs at all, if only a percentage has
_POLL_SECONDS = 0.25
_OBEYS_WITHIN = 30.0  # seconds; it takes as long as one request
_NO_ANSWER = frozenset({FailureKind.CONNECTION_FAILED, FailureKind.DOWNLOAD_TIMEOUT})
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class DrillRefusedError(Exception):
    """There is nothing to rehearse, or nothing to rehearse it with; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done: what it showed, how long it took, and whether all was as it should be."""

    name: str
    seconds: float
    passed: bool
    words: str


Picture = tuple[str, str, str]  # profile, post ("" for the avatar), medium


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture as the API answers it: one of the two is None, or both."""

    cdn_url: str | None
    legacy_url: str | None


class RollbackDrill:
    """Rehearses with a sample of profiles, through the API at `api_url`."""

    def __init__(
        self,
        settings: Settings,
        catalog: sa.Engine,
        collection: Collection,
        *,
        api_url: str,
        actor: str,
        duration: timedelta,
        asks_legacy_urls: bool,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._collection = collection
        self._api_url = api_url.rstrip("/")
        self._actor = actor
        self._duration = duration
        self._asks_legacy_urls = asks_legacy_urls

    def run(self) -> Iterator[Step]:
        """Yields every step when it is done. Whoever stops iterating has the CDN switched on again.

        Raises:
            DrillRefusedError: the API does not answer, nothing is published, or the CDN is switched off already.
        """
        with httpx.Client(base_url=self._api_url, timeout=_TIMEOUT, trust_env=False) as client:
            owner_ids = self._sample()
            started = time.monotonic()
            before = self._shown(client, owner_ids)
            on_cdn = [picture for picture, shown in before.items() if shown.cdn_url]
            if not on_cdn:
                raise DrillRefusedError(
                    f"{self._api_url} answers no CDN URL of {len(owner_ids)} profiles that have some"
                )
            words = f"{len(on_cdn)} pictures of {len(owner_ids)} profiles have CDN URLs"
            yield Step("before", time.monotonic() - started, True, words)
            switched: list[DeliveryPolicy] = []
            try:
                self._switch_off(switched)
                yield from self._while_off(client, owner_ids, on_cdn)
            finally:
                back = self._switch_back(switched)
            yield self._after(client, owner_ids, on_cdn, is_ours=back)

    # -- the catalog --

    def _sample(self) -> Sequence[str]:
        """Profiles with published pictures, those first whose legacy URLs live longest."""
        with self._catalog.connect() as connection:
            policy = read_policy(connection)
            _require_on(policy)
            values = {"collection": self._collection.name, "owners": _MOST_OWNERS}
            found = connection.scalars(_OWNERS, values).all()
        owner_ids = [owner_id for owner_id in found if has_cdn_urls(owner_id, policy.percentage)][:PROFILES]
        if not owner_ids:
            raise DrillRefusedError(
                f"no profile has CDN URLs: nothing is published yet, or too few percent are given them "
                f"({policy.percentage}): `cdn-pipeline cdn percentage` gives them to more"
            )
        return owner_ids

    def _switch_off(self, switched: list[DeliveryPolicy]) -> None:
        """Adds what it did to the list before it is committed: a signal may come between the commit and the return."""

        def work(connection: sa.Connection) -> None:
            off = switch_off_if_on(connection, actor=self._actor, expires_in=self._duration)
            if off is None:
                raise DrillRefusedError("somebody has switched the CDN off meanwhile: nothing was changed")
            switched.append(off)

        transaction(self._catalog, work)

    def _switch_back(self, switched: Sequence[DeliveryPolicy]) -> bool:
        """Whether the switch was the drill's until now."""
        if not switched:
            return False
        return transaction(self._catalog, partial(switch_back, actor=self._actor, switched=switched[-1]))

    # -- steps --

    def _while_off(self, client: httpx.Client, owner_ids: Sequence[str], on_cdn: Sequence[Picture]) -> Iterator[Step]:
        seconds, shown = self._wait(client, owner_ids, lambda now: not any(each.cdn_url for each in now.values()))
        if shown is None:
            words = f"{self._api_url} still answers CDN URLs after {seconds:.0f} s: does it serve this catalog?"
            yield Step("off", seconds, False, words)
            return
        in_time = seconds + CACHED_SECONDS < LIMIT_SECONDS
        words = f"the API answers no CDN URL any more; caches may show them for another {CACHED_SECONDS} s"
        yield Step("off", seconds, in_time, words)
        urls = [url for picture in on_cdn if picture in shown and (url := shown[picture].legacy_url)]
        words = f"{len(urls)} of {len(on_cdn)} pictures have a legacy URL that has not expired"
        yield Step("legacy URLs", 0.0, bool(urls), words)
        if self._asks_legacy_urls and urls:
            yield asyncio.run(self._ask(urls))

    async def _ask(self, urls: Sequence[str]) -> Step:
        """Asks for legacy URLs as downloads do, at the rates that all runs share, until the time is over."""
        started = time.monotonic()
        outcomes: list[FailureKind | None] = []
        networks = self._settings.allowed_networks
        patience = longest_wait_in_run(self._collection.retry)
        async with (
            Downloader(allowed_networks=networks, concurrency=8) as downloader,
            Hosts(self._catalog, patience=patience, allowed_networks=networks) as hosts,
        ):
            hosts.see(transaction(self._catalog, hosts.look))

            async def ask(url: str) -> None:
                try:
                    async with hosts.visit(host_of(url)):
                        await downloader.download(url)
                except HostShut:
                    return
                except ImageFailure as failure:
                    outcomes.append(failure.kind)
                else:
                    outcomes.append(None)

            tasks = [asyncio.ensure_future(ask(url)) for url in urls]
            _, late = await asyncio.wait(tasks, timeout=self._duration.total_seconds() / 2)
            for task in late:
                task.cancel()
        alive, asked = outcomes.count(None), len(outcomes)
        words = f"{alive} of {asked} that were asked give their picture"
        if asked < len(urls):
            words += f"; {len(urls) - asked} were not asked, for want of time or because their host is left alone"
        if asked and _NO_ANSWER.issuperset(outcomes):
            words += f". No answer from any of them: is the origin running at {_base(urls[0])}"
            words += " (`make dev` starts the demo's)?" if self._settings.embedded_source else "?"
        passed = asked > 0 and alive >= ALIVE_ENOUGH * asked
        return Step("legacy URLs asked", time.monotonic() - started, passed, words)

    def _after(
        self, client: httpx.Client, owner_ids: Sequence[str], on_cdn: Sequence[Picture], *, is_ours: bool
    ) -> Step:
        if not is_ours:
            return Step(
                "on", 0.0, False, "the switch was no longer the drill's: it had expired, or somebody has switched since"
            )
        seconds, shown = self._wait(client, owner_ids, partial(_have_cdn_urls, on_cdn))
        if shown is None:
            return Step("on", seconds, False, "the API does not answer the CDN URLs again: `cdn-pipeline status`")
        words = "the API answers the CDN URLs again"
        return Step("on", seconds, seconds + CACHED_SECONDS < LIMIT_SECONDS, words)

    # -- the API --

    def _wait(
        self, client: httpx.Client, owner_ids: Sequence[str], is_done: Callable[[Mapping[Picture, _Shown]], bool]
    ) -> tuple[float, Mapping[Picture, _Shown] | None]:
        """The seconds until the API's answer is as it should be, and the answer; None if that takes too long."""
        started = time.monotonic()
        while (waited := time.monotonic() - started) < _OBEYS_WITHIN:
            shown = self._shown(client, owner_ids)
            if is_done(shown):
                return time.monotonic() - started, shown
            time.sleep(_POLL_SECONDS)
        return waited, None

    def _shown(self, client: httpx.Client, owner_ids: Sequence[str]) -> Mapping[Picture, _Shown]:
        try:
            answer = client.get(
                "/api/v1/creators/ig/media", params={"profile_id": owner_ids}, headers={"Cache-Control": "no-cache"}
            ).raise_for_status()
            return dict(_pictures(answer.json()))
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise DrillRefusedError(
                f"the media API at {self._api_url} does not answer ({error}): is it running? `make dev` and "
                "`cdn-pipeline serve` start it, --api-url names another"
            ) from error


_OWNERS = sa.text("""
    SELECT owner_id FROM cdn_image_assets
    WHERE collection = :collection AND removed_at IS NULL AND processing_completed_at IS NOT NULL
    GROUP BY owner_id ORDER BY max(url_expires_at) DESC NULLS LAST, owner_id LIMIT :owners
""")


def _require_on(policy: DeliveryPolicy) -> None:
    if not policy.is_on:
        raise DrillRefusedError("the CDN is switched off already: `cdn-pipeline cdn on` ends that")


def _have_cdn_urls(pictures: Sequence[Picture], shown: Mapping[Picture, _Shown]) -> bool:
    return all(shown[picture].cdn_url for picture in pictures if picture in shown)


def _base(url: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _pictures(document: Mapping[str, Any]) -> Iterator[tuple[Picture, _Shown]]:
    for profile in document["profiles"]:
        profile_id = profile["profile_id"]
        yield (profile_id, "", "avatar"), _shown(profile["avatar"], profile["avatar"])
        for post in profile["posts"]:
            for each in (post, *post["children"]):
                yield (profile_id, post["postId"], each["mediaId"] or ""), _shown(each, each["thumb"])


def _shown(about: Mapping[str, Any], urls: Mapping[str, str | None]) -> _Shown:
    sizes = [url for size, url in urls.items() if size.isdecimal()]
    return _Shown(next(filter(None, sizes), None), about.get("legacyUrl"))
