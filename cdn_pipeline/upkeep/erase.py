"""Erasure: an owner's images, or some of them, leave catalog, stores and CDN, and do not come back.

Each step can be repeated, and none begins before the one before it is committed; so an erasure that was interrupted at
any point goes on where it was when it is asked for again, or with the next clean-up, and stands as `open` until then:

1. tombstones, so that nothing lets the images in again (`queue.tombstones`), with copies in the store of originals;
2. rows, so that nothing shows them (`queue.erasures`);
3. objects, but for those that other images refer to (`queue.references`): what the rows named, then what runs have
   stored that had an image in hand, then whatever else lies under the erased keys;
4. the CDN's cache, by prefix: each page that draws pictures on a canvas has made a cached copy of its own;
5. a look at stores and CDN, and the audit row without the picture.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.cloudflare.purge import CachePurge, PurgeFailedError
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.queue import erasures, tombstones
from cdn_pipeline.queue.erasures import Erasure, ErasureState
from cdn_pipeline.queue.references import mark_unreferenced, sole_remover
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.keys import path_of, renditions_prefix
from cdn_pipeline.store.objects import ObjectStore, StoreUnavailable
from cdn_pipeline.upkeep.removal import remove_marked
from cdn_pipeline.upkeep.requests import some_at_once
from cdn_pipeline.upkeep.stores import Stores, open_stores
from cdn_pipeline.upkeep.tombstones import delete_copies, store_copies

_log = logging.getLogger(__name__)

# For runs that have an image in hand: one attempt takes 60 s at most, after what was claimed before it.
PATIENCE_SECONDS = 120.0
INTERRUPTED_AFTER = timedelta(minutes=15)  # without a sign: one that goes on waits for runs for two at most
_POLL_SECONDS = 0.5
_LOOKS_AT_CDN = 5  # a purge takes about 150 ms to reach all of Cloudflare
_CDN_TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class LiftRefusedError(Exception):
    """The erasure has not come to its end: finish it first."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be erased: all of an owner's, or only these images and what else shows the same pictures."""

    owner_id: str
    asset_ids: tuple[uuid.UUID, ...] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if there can be no such owner."""
        renditions_prefix("th", self.owner_id)

    @property
    def scope(self) -> str:
        """As `cdn_erasures.scope` has it."""
        return "owner" if self.asset_ids is None else "image"


@dataclass(frozen=True, slots=True)
class Eraser:
    """What an erasure works with. `purge` makes a client of Cloudflare's; None: no token was configured."""

    catalog: sa.Engine
    stores: Stores
    cdn_base_url: str
    purge: Callable[[], CachePurge] | None
    collection: Collection = INSTAGRAM
    patience_seconds: float = PATIENCE_SECONDS

    @classmethod
    def of(cls, settings: Settings, catalog: sa.Engine) -> "Eraser":
        """With the stores and the zone that the settings name."""
        zone, token = settings.cf_zone_id, settings.cf_api_token
        return cls(
            catalog=catalog,
            stores=open_stores(settings),
            cdn_base_url=settings.public_base_url,
            purge=partial(CachePurge, zone, token, api_url=settings.cf_api_url) if zone and token else None,
        )

    def erase(self, target: Target, *, requested_by: str, reason: str) -> Erasure:
        """Erases the target, or goes on with an earlier erasure of it; returns how far it has come.

        What goes wrong is in its `problem`: nothing of it is undone, and calling this again goes on.
        """
        return self.go_on(self.begin(target, requested_by=requested_by, reason=reason))

    def begin(self, target: Target, *, requested_by: str, reason: str) -> uuid.UUID:
        """Sets the tombstones, so that nothing lets the target in any more; `go_on` with the id that is returned."""
        return transaction(
            self.catalog, partial(self.begin_within, target=target, requested_by=requested_by, reason=reason)
        )

    def begin_within(self, connection: sa.Connection, target: Target, *, requested_by: str, reason: str) -> uuid.UUID:
        """As `begin`, within a transaction of the caller's."""
        if target.asset_ids is None:
            erasure_id = tombstones.set_owner_tombstone(connection, self.collection, target.owner_id)
        else:
            erasure_id = tombstones.set_image_tombstones(connection, self.collection, target.owner_id, target.asset_ids)
        erasures.open_erasure(
            connection,
            self.collection,
            erasure_id,
            target.owner_id,
            scope=target.scope,
            requested_by=requested_by,
            reason=reason,
        )
        return erasure_id

    def interrupted(self, limit: int) -> list[uuid.UUID]:
        """Erasures that something is left of and nobody has gone on with lately, the longest left alone first."""
        states = [ErasureState.OPEN, ErasureState.PURGE_PENDING] if self.purge else [ErasureState.OPEN]
        wanted = partial(
            erasures.left_alone, collection=self.collection, states=states, lately=INTERRUPTED_AFTER, limit=limit
        )
        return transaction(self.catalog, wanted)

    def go_on(self, erasure_id: uuid.UUID) -> Erasure:
        """Does what is left of an erasure; returns how far it has come."""
        try:
            state, cdn_verified, problem = self._finish(erasure_id)
        except StoreUnavailable as error:
            state, cdn_verified, problem = ErasureState.OPEN, None, str(error)
        except Exception as error:  # whoever looks at the erasure has no log
            _log.exception("an erasure failed", extra={"erasure": str(erasure_id)})
            reason = getattr(error, "orig", None) or error  # without the statement and its values
            state, cdn_verified, problem = ErasureState.OPEN, None, f"{type(error).__name__}: {reason}"
        close = partial(
            erasures.close_erasure, erasure_id=erasure_id, state=state, cdn_verified=cdn_verified, problem=problem
        )
        transaction(self.catalog, close)
        return transaction(self.catalog, partial(erasures.read_erasure, erasure_id=erasure_id))

    def _finish(self, erasure_id: uuid.UUID) -> tuple[ErasureState, bool | None, str | None]:
        store_copies(self.catalog, self.stores.originals, erasure_id)
        transaction(self.catalog, partial(erasures.take_down, erasure_id=erasure_id))
        paths = [f"{path_of(prefix)}/" for prefix in self._prefixes(erasure_id)]
        transaction(self.catalog, partial(erasures.delete_probes, prefixes=paths))
        self._delete_listed(erasure_id)
        in_hand = self._wait_for_runs(erasure_id)
        self._list_strays(erasure_id)
        self._delete_listed(erasure_id)
        purge_problem = self._purge_cdn(erasure_id)
        still_served, cdn_verified = self._look_at_cdn(erasure_id, looks=1 if purge_problem else _LOOKS_AT_CDN)
        if in_hand:
            return ErasureState.OPEN, cdn_verified, f"a run still has {in_hand} of the images in hand: erase again"
        if purge_problem:
            return ErasureState.PURGE_PENDING, cdn_verified, purge_problem
        if still_served:
            return ErasureState.OPEN, False, f"the CDN still serves {len(still_served)}, such as {still_served[0]}"
        return ErasureState.DONE, cdn_verified, None

    # -- objects --

    def _delete_listed(self, erasure_id: uuid.UUID) -> None:
        """Deletes what is on the list and nobody else refers to.

        Raises:
            StoreUnavailable: also when the store has an object after it was deleted.
        """
        listed = transaction(self.catalog, partial(erasures.objects_to_delete, erasure_id=erasure_id))
        if not listed:
            return
        paths = [reference for reference in listed if reference.startswith("/")]
        sha256s = [reference for reference in listed if not reference.startswith("/")]
        with sole_remover(self.catalog) as remover:
            marked = transaction(self.catalog, partial(mark_unreferenced, paths=paths, originals=sha256s))
            remove_marked(self.catalog, self.stores, marked, remover, delete=_delete_for_good)
        note = partial(
            erasures.note_deleted,
            erasure_id=erasure_id,
            deleted=sorted(marked),
            kept=[reference for reference in listed if reference not in marked],
        )
        transaction(self.catalog, note)

    def _wait_for_runs(self, erasure_id: uuid.UUID) -> int:
        """Waits until no run has an image in hand that was claimed before; returns how many still are."""
        deadline = time.monotonic() + self.patience_seconds
        count = partial(erasures.count_in_hand, erasure_id=erasure_id)
        while (in_hand := transaction(self.catalog, count)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return in_hand

    def purge_prefixes(self, erasure_id: uuid.UUID) -> list[str]:
        """What the CDN's cache is purged of: host and path, without a scheme and without a slash at the end."""
        base = urlsplit(self.cdn_base_url)
        return [f"{base.netloc}{base.path}/{prefix}" for prefix in self._prefixes(erasure_id)]

    def _prefixes(self, erasure_id: uuid.UUID) -> list[str]:
        """The keys under which everything is erased."""
        found = transaction(self.catalog, partial(tombstones.tombstones_of, erasure_id=erasure_id))
        prefix = self.collection.key_prefix
        return sorted({renditions_prefix(prefix, each.owner_id, each.media_id) for each in found})

    def _list_strays(self, erasure_id: uuid.UUID) -> None:
        """Puts on the list what lies under the prefixes and no row names: of attempts that were killed, for one."""
        keys = asyncio.run(_keys_under(self.stores.renditions, self._prefixes(erasure_id)))
        list_found = partial(erasures.list_objects, erasure_id=erasure_id, references=[path_of(key) for key in keys])
        transaction(self.catalog, list_found)

    # -- the CDN --

    def _purge_cdn(self, erasure_id: uuid.UUID) -> str | None:
        """Purges; returns why that is still to be done, or None."""
        if self.purge is None:
            return "CF_API_TOKEN and CF_ZONE_ID are not set"

        async def purge(client: CachePurge) -> None:
            async with client:
                await client.purge_prefixes(self.purge_prefixes(erasure_id))

        try:
            asyncio.run(purge(self.purge()))
        except PurgeFailedError as error:
            return str(error)
        return None

    def _look_at_cdn(self, erasure_id: uuid.UUID, *, looks: int) -> tuple[list[str], bool | None]:
        """The deleted renditions' URLs that the CDN still serves, and whether all could be asked and were gone."""
        deleted = transaction(self.catalog, partial(erasures.deleted_objects, erasure_id=erasure_id))
        urls = [f"{self.cdn_base_url}{reference}" for reference in deleted if reference.startswith("/")]
        served, unknown = asyncio.run(_ask_cdn(urls))
        for look in range(looks - 1):
            if not served:
                break
            time.sleep(0.2 * 2**look)
            served, unknown = asyncio.run(_ask_cdn(urls))
        if served:
            return served, False
        return served, True if urls and not unknown else None

    # -- lifting --

    def lift(self, erasure_id: uuid.UUID) -> int:
        """Lets in again what an erasure keeps out; returns how many tombstones there were.

        The next scan of all source rows finds the images; what was deleted does not come back by itself.

        Raises:
            LiftRefusedError: the erasure is still open, and would delete what comes in.
            StoreUnavailable: the store of originals fails; the tombstones stand.
        """
        erasure = transaction(self.catalog, partial(erasures.read_erasure, erasure_id=erasure_id))
        unfinished = LiftRefusedError(f"erasure {erasure_id} is not finished: `cdn-pipeline erase --resume` first")
        if erasure.state is ErasureState.OPEN:
            raise unfinished

        def remove(connection: sa.Connection) -> int:
            found = tombstones.tombstones_of(connection, erasure_id)
            state = erasures.close_erasure(
                connection, erasure_id, ErasureState.LIFTED, cdn_verified=erasure.cdn_verified, problem=erasure.problem
            )
            if state is not ErasureState.LIFTED:  # a run came back with more of it
                raise unfinished
            delete_copies(
                self.stores.originals, found
            )  # last, and before the commit: they do not outlive their tombstones
            return tombstones.remove_tombstones(connection, erasure_id)

        return transaction(self.catalog, remove)


def expire_private_profiles(eraser: Eraser, settings: Settings, owner_ids: Sequence[str]) -> list[Erasure]:
    """Erases profiles that have turned private, if the settings say so; `Eraser.lift` lets one in again."""
    if settings.private_profiles == "keep":
        return []
    expire = partial(eraser.erase, requested_by="policy", reason="the profile turned private")
    return [expire(Target(owner_id)) for owner_id in owner_ids]


async def _delete_for_good(store: ObjectStore, key: str) -> None:
    for _ in range(2):  # a run may put it again at this very moment
        await store.delete(key)
        if await store.head(key) is None:
            return
    raise StoreUnavailable(f"{store.url} still has {key} after it was deleted: is the bucket locked?")


async def _keys_under(objects: ObjectStore, prefixes: Sequence[str]) -> list[str]:
    return [key for prefix in prefixes async for key in objects.list(prefix)]


async def _ask_cdn(urls: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are served, and those of which nobody can tell: no answer, or neither the picture nor a 404."""
    served: list[str] = []
    unknown: list[str] = []

    async with httpx.AsyncClient(timeout=_CDN_TIMEOUT, trust_env=False) as client:

        async def ask(url: str) -> None:
            try:
                status = (await client.get(url)).status_code
            except httpx.TransportError:
                unknown.append(url)
                return
            if status < 400:
                served.append(url)
            elif status not in (404, 410):
                unknown.append(url)

        await some_at_once(map(ask, urls))
    return sorted(served), sorted(unknown)
