"""Fresh URLs: asks a provider for owners whose images want them, and takes the answers in like source rows.

The application database is not written: the catalog prefers the later observation, so the old row changes nothing.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.discover import take_in
from cdn_pipeline.queue.fresh_urls import (
    Allowance,
    Owner,
    ask_again,
    budget_left,
    claim_owners,
    images_of_owner,
    images_wanting_urls,
    note_answer,
    note_refused,
    owners_wanting_urls,
)
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import read_usernames
from cdn_pipeline.sources.decodo import Decodo
from cdn_pipeline.sources.discovery import Change, ImageReference, Sighting
from cdn_pipeline.sources.provider import NoProfile, ProvidedProfile, Provider, ProviderRefusedError, Refusal

NO_PROVIDER = "no provider configured"

_OUTAGE = frozenset({Refusal.RATE_LIMITED, Refusal.UNAVAILABLE})

_OWNERS_LOOKED_AT = 10_000  # 1 MB; no plan's daily budget is larger by far
_MINUTES = 15.0  # then nobody else is asked for: what is due in the same run waits meanwhile

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How an unanswered question is put again; each time it counts against the budget."""

    owners_at_once: int = 50
    rounds: int = 3  # empty and blocked answers are common with public profiles, rarely three in a row
    pause_seconds: float = 10.0  # between two rounds


@dataclass(slots=True)
class Refetched:
    """What asking has brought, by shard where it is a counter."""

    asked: Counter[str] = field(default_factory=Counter)  # owners
    answered: Counter[str] = field(default_factory=Counter)  # owners, with pictures
    fresh_urls: Counter[str] = field(default_factory=Counter)  # images
    still_waiting: Counter[str] = field(default_factory=Counter)  # images that want a fresh URL
    refusals: Counter[Refusal] = field(default_factory=Counter)  # owners that came without pictures
    turned_private: list[str] = field(default_factory=list)  # of these, by id
    budget_left: int | None = None  # requests, of today
    stopped: str | None = None  # why not everybody was asked for


def refetch_configured(
    settings: Settings, source: sa.Engine, catalog: sa.Engine, collection: Collection, shards: Sequence[str]
) -> Refetched:
    """Asks the provider that the environment names; without one nothing is asked, and images go on waiting.

    Raises:
        SourceSchemaError: the application database has no user names.
    """
    provider = Decodo.from_settings(settings)
    if provider is None:
        waiting = transaction(catalog, partial(images_wanting_urls, collection=collection, shards=shards))
        return Refetched(still_waiting=waiting, stopped=NO_PROVIDER)
    allowance = Allowance(provider.name, settings.decodo_requests_per_day, settings.decodo_requests_per_second)
    with provider:
        return refetch(provider, allowance, source, catalog, collection, shards)


def refetch(
    provider: Provider,
    allowance: Allowance,
    source: sa.Engine,
    catalog: sa.Engine,
    collection: Collection,
    shards: Sequence[str],
    patience: Patience | None = None,
) -> Refetched:
    """Asks for owners in these shards, the most urgent first, until nobody wants it, or budget or time are spent.

    A provider that refuses us, or answers nothing, is not asked further in this run; neither fails it.

    Raises:
        SourceSchemaError: the application database has no user names.
    """
    session = _Session(provider, allowance, source, catalog, collection, patience or Patience())
    session.ask_for_all(shards)
    found = session.found
    found.still_waiting = transaction(catalog, partial(images_wanting_urls, collection=collection, shards=shards))
    found.budget_left = transaction(catalog, partial(budget_left, allowance=allowance))
    return found


@dataclass(slots=True)
class _Session:
    """One run's questions."""

    provider: Provider
    allowance: Allowance
    source: sa.Engine
    catalog: sa.Engine
    collection: Collection
    patience: Patience
    found: Refetched = field(default_factory=Refetched)

    def ask_for_all(self, shards: Sequence[str]) -> None:
        give_up = time.monotonic() + 60 * _MINUTES
        wanted = self._write(lambda on: owners_wanting_urls(on, self.collection, shards, limit=_OWNERS_LOOKED_AT))
        for start in range(0, len(wanted), self.patience.owners_at_once):
            if time.monotonic() > give_up:
                self.found.stopped = f"{_MINUTES:.0f} minutes are over"
            elif named := self._with_names(wanted[start : start + self.patience.owners_at_once]):
                self._ask_for(named)
            if self.found.stopped:
                return

    def _with_names(self, owners: Sequence[Owner]) -> Mapping[str, Owner]:
        """Owners by user name, in their order. Of two with the same name the less urgent waits for another night."""
        names = read_usernames(self.source, [uuid.UUID(owner.owner_id) for owner in owners])
        named: dict[str, Owner] = {}
        for owner in owners:
            if name := names.get(uuid.UUID(owner.owner_id)):
                named.setdefault(name, owner)
        return named

    def _ask_for(self, named: Mapping[str, Owner]) -> None:
        owner_ids = [owner.owner_id for owner in named.values()]
        grant = self._write(lambda on: claim_owners(on, self.collection, self.allowance, owner_ids))
        if len(grant.owner_ids) < len(owner_ids) and not grant.budget_left:
            self.found.stopped = "today's budget is spent"
        pending = {name: owner for name, owner in named.items() if owner.owner_id in grant.owner_ids}
        self.found.asked.update(owner.shard for owner in pending.values())
        try:
            if pending:
                self._ask_in_rounds(pending, grant.wait_seconds)
        except ProviderRefusedError as error:
            self._give_back(pending, str(error))

    def _ask_in_rounds(self, pending: dict[str, Owner], wait_seconds: float) -> None:
        """Takes everybody out of `pending` of whom it is known what became of the question."""
        owners, refusals = len(pending), dict.fromkeys(pending, Refusal.UNAVAILABLE)
        time.sleep(wait_seconds)
        self._round(list(pending), pending, refusals)
        for _ in range(self.patience.rounds - 1):
            if len(pending) == owners and _OUTAGE.issuperset(refusals.values()):
                break
            if again := self._granted_again(pending):
                time.sleep(self.patience.pause_seconds)
                self._round(again, pending, refusals)
        if len(pending) == owners > 1:  # which tells of the provider, and nothing of them
            self.found.stopped = "the provider answers nothing"
            refusals = dict.fromkeys(pending, Refusal.UNAVAILABLE)
        for name in list(pending):
            self._note(pending.pop(name), refusals[name])

    def _granted_again(self, pending: Mapping[str, Owner]) -> list[str]:
        """The user names of `pending` that the budget lets ask for once more."""
        if not pending:
            return []
        owner_ids = [owner.owner_id for owner in pending.values()]
        grant = self._write(lambda on: ask_again(on, self.allowance, owner_ids))
        return [name for name, owner in pending.items() if owner.owner_id in grant.owner_ids]

    def _round(self, names: Sequence[str], pending: dict[str, Owner], refusals: dict[str, Refusal]) -> None:
        """Asks once; who may be asked again stays in `pending`, with the reason in `refusals`."""
        for answer in self.provider.fetch(names):
            owner = pending.get(answer.username)
            if owner is None:
                continue
            if isinstance(answer, NoProfile) and answer.refusal.passes:
                refusals[answer.username] = answer.refusal
                continue
            del pending[answer.username]
            if isinstance(answer, NoProfile):
                self._note(owner, answer.refusal)
            else:
                self._take_in(owner, answer)

    def _take_in(self, owner: Owner, profile: ProvidedProfile) -> None:
        """Sightings and answer in one transaction."""

        def work(connection: sa.Connection) -> list[Sighting]:
            sightings = take_in(connection, self.collection, self._references(connection, owner, profile))
            note_answer(connection, self.collection, self.allowance, owner.owner_id, None)
            return sightings

        sightings = self._write(work)
        self.found.answered[owner.shard] += 1
        moved = (Change.CHANGED, Change.RESIGNED)
        self.found.fresh_urls[owner.shard] += sum(each.change in moved and each.alive for each in sightings)

    def _references(self, connection: sa.Connection, owner: Owner, profile: ProvidedProfile) -> list[ImageReference]:
        """The owner's images that the profile shows; a picture of a post that no row tells of is not ours to mirror."""
        provided = {(image.source_type, image.media_id): image for image in profile.images}
        now = catalog_time(connection)
        return [
            ImageReference(key, owner.owner_id, owner.shard, None, image.candidates, now)
            for key in images_of_owner(connection, self.collection, owner.owner_id)
            if (image := provided.get((key.source_type, key.media_id)))
        ]

    def _note(self, owner: Owner, refusal: Refusal) -> None:
        self.found.refusals[refusal] += 1
        if refusal is Refusal.PRIVATE:
            self.found.turned_private.append(owner.owner_id)
        self._write(lambda on: note_answer(on, self.collection, self.allowance, owner.owner_id, refusal))

    def _give_back(self, pending: Mapping[str, Owner], words: str) -> None:
        """A refusal is one failure for the operator, and no answer about anybody."""
        self.found.stopped = words
        self.found.asked.subtract(owner.shard for owner in pending.values())
        owner_ids = [owner.owner_id for owner in pending.values()]
        self._write(lambda on: note_refused(on, self.collection, self.allowance, owner_ids, words))

    def _write(self, work: Callable[[sa.Connection], _T]) -> _T:
        return transaction(self.catalog, work)
