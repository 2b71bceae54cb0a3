"""The hosts that a run downloads from: who may be asked, how often, and by how many images at once.

Rate and breaker of a host are rows of the catalog, shared by all runs; concurrency is this run's own. What the catalog
says is read along with every claim and every settled batch, so an image costs no round trip of its own, unless its host
is rate-limited (one for a second's worth of turns) or fails.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Self, TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.engine.backlog import Admission
from cdn_pipeline.engine.outages import CATALOG_PATIENCE
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.concurrency import Concurrency
from cdn_pipeline.fetch.hosts import HostRates
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.hosts import Breaker, look_at_breakers, note_answer, note_failure, reserve_turns, take_probe
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Network

# A source error may tell of one URL alone: see `_tells_of_host`.
_HOST_KINDS = frozenset(
    {
        FailureKind.SOURCE_ERROR,
        FailureKind.RATE_LIMITED,
        FailureKind.DOWNLOAD_TIMEOUT,
        FailureKind.CONNECTION_FAILED,
        FailureKind.TRUNCATED_DOWNLOAD,
    }
)
_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS = 408, 429

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class HostShut(Exception):
    """The host is left alone just now: nothing was asked of it, or the answer came after its breaker had opened."""

    def __init__(self, host: str, failure: FailureKind | None, seconds: float) -> None:
        super().__init__(f"{host} is left alone for {seconds:.0f} s, after {failure}")
        self.failure = ImageFailure(
            failure or FailureKind.CONNECTION_FAILED, f"{host} is left alone", retry_after_seconds=seconds
        )
        """What it means to an image that has other URLs."""


@dataclass(slots=True)
class _Host:
    """What this run knows of a host."""

    concurrency: Concurrency = field(default_factory=Concurrency)
    failures: int = 0  # in a row, whichever run they happened to
    failure: FailureKind | None = None
    is_open: bool = False
    retry_at: float = 0.0  # event loop time, seconds
    is_probed: bool = False  # by this run

    def note(self, breaker: Breaker | None) -> None:
        self.failures = breaker.failures if breaker else 0
        self.failure = breaker.failure if breaker else None
        self.is_open = breaker is not None and breaker.is_open
        wait = breaker.retry_in if breaker else None
        self.retry_at = asyncio.get_running_loop().time() + wait.total_seconds() if wait else 0.0

    @property
    def shut_for(self) -> float:
        """Seconds until it may be asked; 0 if it may be, or if it is half-open."""
        return max(self.retry_at - asyncio.get_running_loop().time(), 0.0) if self.is_open else 0.0


class Hosts:
    """The gate of a stream, and its images' way to their hosts. An async context manager, one per run.

    `patience` is how long a run waits for a host that is left alone, as it waits for its own retries.
    """

    def __init__(self, catalog: sa.Engine, *, patience: timedelta, allowed_networks: tuple[Network, ...] = ()) -> None:
        self._catalog = catalog
        self._patience = patience.total_seconds()
        self._rates = HostRates(self._reserve, allowed_networks=allowed_networks)
        self._hosts: defaultdict[str, _Host] = defaultdict(_Host)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hosts")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False)

    # -- the stream's gate --

    def admits(self, job: DueJob) -> Admission:
        """Whether the job may begin, as far as its host goes. One image at a time asks a half-open host."""
        if job.stage is not Stage.DOWNLOAD:
            return Admission.START
        host = self._hosts[job.host]
        if host.is_probed:
            return Admission.WAIT
        if host.shut_for > self._patience:
            return Admission.RELEASE
        has_room = not host.shut_for and host.concurrency.has_room and not self._rates.is_busy(job.host)
        return Admission.START if has_room else Admission.WAIT

    def look(self, connection: sa.Connection) -> Sequence[Breaker]:
        """What all runs know of breakers."""
        return look_at_breakers(connection)

    def see(self, seen: Sequence[Breaker]) -> None:
        """Takes in what `look` has read."""
        breakers = {breaker.host: breaker for breaker in seen}
        for name in self._hosts.keys() | breakers.keys():
            self._hosts[name].note(breakers.get(name))

    @property
    def is_probing(self) -> bool:
        """Whether this run has a half-open host asked just now."""
        return any(host.is_probed for host in self._hosts.values())

    # -- an image's way to a host --

    @asynccontextmanager
    async def visit(self, name: str) -> AsyncIterator[None]:
        """Waits for the host's turn, and learns from how the block ends.

        Raises:
            HostShut: the host is left alone, or the block failed with it when it was already.
        """
        host = self._hosts[name]
        begun = host.concurrency.begin()
        probing = False
        try:
            probing = host.is_open and await self._takes_probe(name, host)
            await self._rates.turn(name)
            if host.is_open and not probing:  # since it began to wait
                raise HostShut(name, host.failure, host.shut_for)
            yield
        except ImageFailure as failure:
            if _tells_of_host(failure):
                host.concurrency.failed(begun)
                await self._note_failure(name, host, failure, probing=probing)
            else:
                await self._note_answer(name, host, probing=probing)
            raise
        else:
            await self._note_answer(name, host, probing=probing)
        finally:
            host.concurrency.end()
            host.is_probed = host.is_probed and not probing

    async def _takes_probe(self, name: str, host: _Host) -> bool:
        """Whether this run is the one that asks; if not, the host may have been found well meanwhile."""
        if host.is_probed or host.shut_for:
            raise HostShut(name, host.failure, host.shut_for)
        host.is_probed = True
        taken = False
        try:
            breaker, taken = await self._in_catalog(lambda connection: take_probe(connection, name))
        finally:
            host.is_probed = taken
        host.note(breaker)
        return taken

    async def _note_failure(self, name: str, host: _Host, failure: ImageFailure, *, probing: bool) -> None:
        retry_after = timedelta(seconds=failure.retry_after_seconds or 0)
        with suppress(sa.exc.DBAPIError):  # a catalog that is away is trouble enough
            breaker, was_open = await self._in_catalog(
                lambda connection: note_failure(
                    connection, name, failure.kind, probing=probing, retry_after=retry_after
                )
            )
            host.note(breaker)
            if was_open:
                raise HostShut(name, host.failure, host.shut_for) from failure
            if host.is_open:
                _log.warning("%s is left alone for %.0f s: %s", name, host.shut_for, failure)

    async def _note_answer(self, name: str, host: _Host, *, probing: bool) -> None:
        host.concurrency.answered()
        if not (probing or (host.failures and not host.is_open)):
            return
        host.failures = 0  # for those that are answered while this is written
        with suppress(sa.exc.DBAPIError):
            await self._in_catalog(lambda connection: note_answer(connection, name, probing=probing))
            if probing:
                host.note(None)
                _log.warning("%s answers again", name)

    async def _reserve(self, name: str, turns: int, spacing: timedelta) -> timedelta:
        return await self._in_catalog(
            lambda connection: reserve_turns(connection, name, turns=turns, spacing=spacing), patience=CATALOG_PATIENCE
        )

    async def _in_catalog(self, work: Callable[[sa.Connection], _T], *, patience: timedelta = timedelta()) -> _T:
        attempt = partial(transaction, self._catalog, work, patience=patience)
        return await asyncio.get_running_loop().run_in_executor(self._thread, attempt)


def _tells_of_host(failure: ImageFailure) -> bool:
    """Whether the failure tells of the host rather than of one URL, as most of 4xx do."""
    status = failure.status
    about_url = status is not None and 400 <= status < 500 and status not in (_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS)
    return failure.kind in _HOST_KINDS and not about_url
