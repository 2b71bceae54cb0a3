"""Fresh URLs: asks a provider for owners whose images want them, and takes the answers in like source rows.

The application database is not written: the catalog prefers the later observation, so the old row changes nothing.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
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
    refused_lately,
)
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import read_usernames
from cdn_pipeline.sources.decodo import Decodo
from cdn_pipeline.sources.discovery import Change, ImageReference, Sighting
from cdn_pipeline.sources.provider import NoProfile, ProvidedProfile, Provider, ProviderRefusedError, Refusal

_OUTAGE = frozenset({Refusal.RATE_LIMITED, Refusal.UNAVAILABLE})

_OWNERS_LOOKED_AT = 10_000  # 1 MB; no plan's daily budget is larger by far

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How an unanswered question is put again; each time it counts against the budget."""

    owners_at_once: int = 50
    rounds: int = 3  # empty and blocked answers are common with public profiles, rarely three in a row
    pause_seconds: float = 10.0  # between two rounds
    seconds: float = 900.0  # then nobody else is asked for: what is due in the same run waits meanwhile


class Stopped(StrEnum):
    """Why not everybody was asked for."""

    NO_PROVIDER = "no provider configured"
    BUDGET_SPENT = "today's budget is spent"
    TIME_IS_OVER = "the time for it is over"
    NO_ANSWERS = "the provider answers nothing"
    REFUSED = "the provider refuses us"


@dataclass(slots=True)
class Refetched:
    """What asking has brought, by shard where it is a counter."""

    asked: Counter[str] = field(default_factory=Counter)  # owners
    answered: Counter[str] = field(default_factory=Counter)  # owners, with pictures
    fresh_urls: Counter[str] = field(default_factory=Counter)  # images
    still_waiting: Counter[str] = field(default_factory=Counter)  # images that want a fresh URL
    answers: dict[str, Refusal | None] = field(default_factory=dict)  # by owner; None: with pictures
    unnamed: set[str] = field(default_factory=set)  # owners without a user name to ask for
    budget_left: int | None = None  # requests, of today
    stopped: Stopped | None = None
    refused: str | None = None  # the provider's words, if it refuses us

    @property
    def why_stopped(self) -> str | None:
        """In words; the provider's own if it refuses us."""
        return self.refused or (self.stopped and self.stopped.value)

    @property
    def refusals(self) -> Counter[Refusal]:
        """How many owners came without pictures, and why."""
        return Counter(refusal for refusal in self.answers.values() if refusal)

    @property
    def turned_private(self) -> list[str]:
        """Of these, the ids of those that are private."""
        return [owner_id for owner_id, refusal in self.answers.items() if refusal is Refusal.PRIVATE]


@contextmanager
def configured_provider(settings: Settings) -> Iterator[tuple[Provider, Allowance] | None]:
    """The provider that the environment names, and how much it may be asked; None without one."""
    provider = Decodo.from_settings(settings)
    if provider is None:
        yield None
        return
    allowance = Allowance(provider.name, settings.decodo_requests_per_day, settings.decodo_requests_per_second)
    with provider:
        yield provider, allowance


def refetch_configured(
    settings: Settings, source: sa.Engine, catalog: sa.Engine, collection: Collection, shards: Sequence[str]
) -> Refetched:
    """Asks the provider that the environment names; without one nothing is asked, and images go on waiting.

    Raises:
        SourceSchemaError: the application database has no user names.
    """
    with configured_provider(settings) as configured:
        if configured is None:
            waiting = transaction(catalog, partial(images_wanting_urls, collection=collection, shards=shards))
            return Refetched(still_waiting=waiting, stopped=Stopped.NO_PROVIDER)
        return refetch(*configured, source, catalog, collection, shards)


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
    wanting = partial(owners_wanting_urls, collection=collection, shards=shards, limit=_OWNERS_LOOKED_AT)
    session.ask_for_all(transaction(catalog, wanting))
    found = session.found
    found.still_waiting = transaction(catalog, partial(images_wanting_urls, collection=collection, shards=shards))
    found.budget_left = transaction(catalog, partial(budget_left, allowance=allowance))
    return found


def refetch_owners(
    provider: Provider,
    allowance: Allowance,
    source: sa.Engine,
    catalog: sa.Engine,
    collection: Collection,
    owners: Sequence[Owner],
    patience: Patience,
    heard: Callable[[str, Refusal | None], None],
) -> Refetched:
    """Asks for these owners out of their turn, in their order: whether their images want it or not.

    Who was private or gone within the last day is not asked for again.

    Args:
        provider: who is asked, as far as the allowance goes.
        allowance: half of which is left to the nights.
        source: the application database, for user names.
        catalog: where answers are taken in.
        collection: whose owners they are.
        owners: whom to ask for.
        patience: how often and how long.
        heard: told each answer as soon as it is taken in, by the owner's id; None is an answer with pictures.

    Raises:
        SourceSchemaError: the application database has no user names.
    """
    session = _Session(provider, allowance, source, catalog, collection, patience, in_turn=False, heard=heard)
    owner_ids = [owner.owner_id for owner in owners]
    known = transaction(catalog, partial(refused_lately, collection=collection, owner_ids=owner_ids))
    for owner_id, refusal in known.items():
        session.tell(owner_id, refusal)
    session.ask_for_all([owner for owner in owners if owner.owner_id not in known])
    return session.found


@dataclass(slots=True)
class _Session:
    """One run's questions."""

    provider: Provider
    allowance: Allowance
    source: sa.Engine
    catalog: sa.Engine
    collection: Collection
    patience: Patience
    in_turn: bool = True
    heard: Callable[[str, Refusal | None], None] | None = None
    found: Refetched = field(default_factory=Refetched)
    began: float = field(default_factory=time.monotonic)

    def ask_for_all(self, wanted: Sequence[Owner]) -> None:
        for start in range(0, len(wanted), self.patience.owners_at_once):
            if self._seconds_left() < 0:
                self.found.stopped = Stopped.TIME_IS_OVER
            elif named := self._with_names(wanted[start : start + self.patience.owners_at_once]):
                self._ask_for(named)
            if self.found.stopped:
                return

    def tell(self, owner_id: str, refusal: Refusal | None) -> None:
        """What is known of an owner, and written; None: pictures."""
        self.found.answers[owner_id] = refusal
        if self.heard:
            self.heard(owner_id, refusal)

    def _seconds_left(self) -> float:
        return self.began + self.patience.seconds - time.monotonic()

    def _with_names(self, owners: Sequence[Owner]) -> Mapping[str, Owner]:
        """Owners by user name, in their order. Of two with the same name the less urgent waits for another night."""
        names = read_usernames(self.source, [uuid.UUID(owner.owner_id) for owner in owners])
        named: dict[str, Owner] = {}
        for owner in owners:
            if name := names.get(uuid.UUID(owner.owner_id)):
                named.setdefault(name, owner)
            else:
                self.found.unnamed.add(owner.owner_id)
        return named

    def _ask_for(self, named: Mapping[str, Owner]) -> None:
        owner_ids = [owner.owner_id for owner in named.values()]
        claim = partial(claim_owners, collection=self.collection, allowance=self.allowance, owner_ids=owner_ids)
        seconds = self._seconds_left()
        grant = self._write(partial(claim, in_turn=self.in_turn, within_seconds=seconds))
        if grant.wait_seconds > seconds:
            self.found.stopped = Stopped.TIME_IS_OVER
        elif len(grant.owner_ids) < len(owner_ids) and not grant.budget_left:
            self.found.stopped = Stopped.BUDGET_SPENT
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
            is_late = self._seconds_left() < self.patience.pause_seconds
            if is_late or (len(pending) == owners and _OUTAGE.issuperset(refusals.values())):
                break
            self._ask_again(pending, refusals)
        if len(pending) == owners > 1:  # which tells of the provider, and nothing of them
            self.found.stopped = Stopped.NO_ANSWERS
            refusals = dict.fromkeys(pending, Refusal.UNAVAILABLE)
        for name in list(pending):
            self._note(pending.pop(name), refusals[name])

    def _ask_again(self, pending: dict[str, Owner], refusals: dict[str, Refusal]) -> None:
        """A further round, with those of `pending` that budget and time let ask for."""
        if not pending:
            return
        owner_ids = [owner.owner_id for owner in pending.values()]
        again = partial(ask_again, allowance=self.allowance, owner_ids=owner_ids)
        grant = self._write(partial(again, in_turn=self.in_turn, within_seconds=self._seconds_left()))
        if grant.owner_ids:
            time.sleep(max(self.patience.pause_seconds, grant.wait_seconds))
            self._round(
                [name for name, owner in pending.items() if owner.owner_id in grant.owner_ids], pending, refusals
            )

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
            note_answer(connection, self.collection, self.allowance, owner.owner_id, None, in_turn=self.in_turn)
            return sightings

        sightings = self._write(work)
        self.tell(owner.owner_id, None)
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
        note = partial(note_answer, collection=self.collection, allowance=self.allowance, owner_id=owner.owner_id)
        self._write(partial(note, refusal=refusal, in_turn=self.in_turn))
        self.tell(owner.owner_id, refusal)

    def _give_back(self, pending: Mapping[str, Owner], words: str) -> None:
        """A refusal is one failure for the operator, and no answer about anybody."""
        self.found.stopped, self.found.refused = Stopped.REFUSED, words
        self.found.asked.subtract(owner.shard for owner in pending.values())
        owner_ids = [owner.owner_id for owner in pending.values()]
        note = partial(note_refused, collection=self.collection, allowance=self.allowance, owner_ids=owner_ids)
        self._write(partial(note, words=words, in_turn=self.in_turn))

    def _write(self, work: Callable[[sa.Connection], _T]) -> _T:
        return transaction(self.catalog, work)
