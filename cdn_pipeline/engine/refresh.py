"""Refreshes: what a run does for users who want an owner's pictures fetched again.

The owner's source rows are read again and the provider is asked, and what has changed is taken in as ever. Each refresh
is finished as soon as its answer is known, so what a killed run has not finished is the next one's.
"""

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.discover import discover_owners
from cdn_pipeline.engine.refetch import Patience, Refetched, Stopped, configured_provider, refetch_owners
from cdn_pipeline.queue.fresh_urls import Owner
from cdn_pipeline.queue.refreshes import Refresh, RefreshAnswer, finish_refresh, take_refreshes
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.provider import Answer, NoProfile, Provider, Refusal

_log = logging.getLogger(__name__)

# All other images of the run wait meanwhile.
PATIENCE = Patience(owners_at_once=20, rounds=2, pause_seconds=2.0, seconds=45.0)


def refresh_owners(
    settings: Settings,
    source: sa.Engine,
    catalog: sa.Engine,
    collection: Collection,
    shards: Sequence[str],
    *,
    run_id: str,
    patience: Patience = PATIENCE,
) -> Counter[RefreshAnswer]:
    """Does the open refreshes of these shards; returns how many came to which answer.

    Some stay open for the next run if time is over, or if two owners have one user name. Whatever goes wrong with the
    provider is logged, and is an answer: nobody's refresh keeps a shard from being mirrored.

    Raises:
        SourceSchemaError: the application database is not as expected.
    """
    refreshes = transaction(catalog, partial(take_refreshes, collection=collection, shards=shards, run_id=run_id))
    held = _Held(catalog, collection, {refresh.owner_id: refresh for refresh in refreshes})
    if not refreshes:
        return held.finished
    discover_owners(source, catalog, collection, list(held.refreshes))
    try:
        _ask_provider(settings, source, held, patience)
    except Exception:
        _log.exception("the provider could not be asked for users' refreshes")
        held.finish_all(RefreshAnswer.UNAVAILABLE)
    return held.finished


@dataclass(frozen=True, slots=True)
class _Held:
    """The refreshes that the run has begun with, by owner, until they are finished."""

    catalog: sa.Engine
    collection: Collection
    refreshes: dict[str, Refresh]
    finished: Counter[RefreshAnswer] = field(default_factory=Counter)

    def finish(self, owner_id: str, answer: RefreshAnswer) -> None:
        refresh = self.refreshes.pop(owner_id)
        transaction(self.catalog, partial(finish_refresh, collection=self.collection, refresh=refresh, answer=answer))
        self.finished[answer] += 1

    def finish_all(self, answer: RefreshAnswer) -> None:
        for owner_id in list(self.refreshes):
            self.finish(owner_id, answer)


def _ask_provider(settings: Settings, source: sa.Engine, held: _Held, patience: Patience) -> None:
    with configured_provider(settings) as configured:
        if configured is None:
            held.finish_all(RefreshAnswer.NO_PROVIDER)
            return
        provider, allowance = configured
        found = refetch_owners(
            _InTime(provider, patience.seconds),
            allowance,
            source,
            held.catalog,
            held.collection,
            [Owner(refresh.owner_id, refresh.shard) for refresh in held.refreshes.values()],
            patience,
            lambda owner_id, refusal: held.finish(owner_id, _ANSWERS.get(refusal, RefreshAnswer.UNAVAILABLE)),
        )
    for owner_id in list(held.refreshes):
        if answer := _unasked(found, owner_id):
            held.finish(owner_id, answer)


_ANSWERS: Mapping[Refusal | None, RefreshAnswer] = {
    None: RefreshAnswer.ANSWERED,
    Refusal.PRIVATE: RefreshAnswer.PRIVATE,
    Refusal.GONE: RefreshAnswer.GONE,
}


def _unasked(found: Refetched, owner_id: str) -> RefreshAnswer | None:
    """What is told of an owner without an answer; None if the next run may ask."""
    if owner_id in found.unnamed:
        return RefreshAnswer.NO_USER_NAME
    if found.stopped is Stopped.BUDGET_SPENT:
        return RefreshAnswer.BUDGET_SPENT
    return None if found.stopped in (None, Stopped.TIME_IS_OVER) else RefreshAnswer.UNAVAILABLE


class _InTime:
    """A provider whose answers are waited for until a moment comes, however long its calls hang.

    A call that hangs is left behind, and ends by its own time limit or with the process.
    """

    def __init__(self, provider: Provider, seconds: float) -> None:
        self.name = provider.name
        self._provider = provider
        self._give_up = time.monotonic() + seconds

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        """As the provider's; who has no answer in time is unavailable."""
        answers: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._ask, args=(usernames, answers), name="provider", daemon=True).start()
        waiting = dict.fromkeys(usernames)
        while (answer := self._next(answers)) is not None:
            if isinstance(answer, BaseException):
                raise answer
            waiting.pop(answer.username, None)
            yield answer
        yield from (NoProfile(name, Refusal.UNAVAILABLE, "no answer in time") for name in waiting)

    def _ask(self, usernames: Sequence[str], answers: "queue.SimpleQueue[Answer | BaseException | None]") -> None:
        try:
            for answer in self._provider.fetch(usernames):
                answers.put(answer)
            answers.put(None)
        except BaseException as error:
            answers.put(error)

    def _next(self, answers: "queue.SimpleQueue[Answer | BaseException | None]") -> Answer | BaseException | None:
        try:
            return answers.get(timeout=max(0.0, self._give_up - time.monotonic()))
        except queue.Empty:
            return None
