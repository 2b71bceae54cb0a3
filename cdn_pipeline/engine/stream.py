"""The stream: due jobs in, outcomes out, in the order of priority and deadline, with bounded work in hand."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import CatalogUnavailable, is_away, transaction
from cdn_pipeline.engine.backlog import Backlog, Gate, OpenGate
from cdn_pipeline.engine.outages import CATALOG_PATIENCE, Outage, StoreWatch
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.due import DueJob, Outlook, Selection, claim, outlook
from cdn_pipeline.queue.leases import (
    RENEW_EVERY,
    Run,
    RunAlreadyHeldError,
    RunLostError,
    release_dead_leases,
    renew_leases,
)
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline.queue.retries import longest_wait_in_run
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage

IN_HAND = 64  # images at once: their bytes are what a run's memory holds (0.1 MB each as a rule, 32 MB at most)
CLAIMED_AHEAD = 1024  # leases over all shards: rows, not bytes
MAX_BACKLOG = 2 * CLAIMED_AHEAD  # where one host after the other has no room
MAX_CLAIM = 128  # per shard and round trip
SETTLE_EVERY_SECONDS = 1.0  # 0.25 costs 0.7 ms of CPU more an image, at 25 images a second
SETTLE_AT = 64
POLL_SECONDS = 1.0  # for leases of other runs, and for jobs that others have locked
CROWDED_POLL_SECONDS = 5.0  # for jobs of other hosts in a shard, as long as those that are known have no room

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard that is finished: nothing due, nothing in hand, no retry that this run waits for.

    `images_per_second` is the whole run's rate so far: shards share the run, so a rate of their own would mislead.
    """

    shard: str
    tally: Tally
    images_per_second: float | None


@dataclass(slots=True)
class _Shard:
    name: str
    tally: Tally = field(default_factory=Tally)
    may_have_due: bool = True
    in_hand: int = 0  # in the backlog, in work or with an outcome that is not written yet
    left_out: frozenset[str] = frozenset()  # hosts that the last claim left out, because they had no room
    look_again_at: float = 0.0  # event loop time

    def is_hungry(self, crowded: frozenset[str], now: float) -> bool:
        if self.left_out and self.left_out <= crowded:
            return self.may_have_due and self.look_again_at <= now
        return self.may_have_due or bool(self.left_out)

    @property
    def is_idle(self) -> bool:
        return not self.may_have_due and self.in_hand == 0


class Stream:
    """Works through the due jobs of some shards. One use: `run`, which `stop` ends early."""

    def __init__(
        self,
        catalog: sa.Engine,
        run: Run,
        selection: Selection,
        process: Callable[[DueJob], Coroutine[Any, Any, Outcome]],
        on_finished: Callable[[ShardReport], None],
        *,
        limit: int | None = None,
        gate: Gate | None = None,
    ) -> None:
        """`process` does one image; `on_finished` is told of every finished shard, on the loop's thread.

        `limit` is how many jobs are claimed at most; a retry claims its job once more. `gate` says which may begin.
        """
        self._catalog = catalog
        self._run = run
        self._selection = selection
        self._process = process
        self._on_finished = on_finished
        self._left = limit
        self._shards: dict[str, _Shard] = {}
        self._finished: list[Tally] = []
        self._gate = gate or OpenGate()
        self._backlog = Backlog(self._gate)
        self._tasks: dict[asyncio.Task[Outcome], DueJob] = {}
        self._outcomes: list[Outcome] = []
        self._changed = asyncio.Event()
        self._stopping = False
        self._settled_at = 0.0
        self._stores = StoreWatch()
        self._catalog_is_away = False
        # One thread for the work and one for the renewal of leases. asyncio's own are shared with name look-ups: six
        # slow ones on two cores, and leases would expire.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="catalog")

    @property
    def open_shards(self) -> int:
        """Shards that are not finished."""
        return len(self._shards)

    def tally(self) -> Tally:
        """What became of all images so far."""
        return Tally.total([*self._finished, *(shard.tally for shard in list(self._shards.values()))])

    def stop(self) -> None:
        """Ends `run` soon: what is in hand is released and due again. Call it on the loop's thread."""
        self._stopping = True
        self._changed.set()

    async def run(self, shards: Sequence[str]) -> None:
        """Works until every shard is finished.

        Whatever ends it, no lease is left behind if the catalog can be reached.
        """
        self._shards = {name: _Shard(name) for name in shards}
        renewal = asyncio.create_task(self._renew_leases())
        try:
            await self._release_dead_leases(shards)
            while self._shards and not self._stopping:
                await self._start_images()
                await self._wait()
                self._collect()
                await self._settle_if_worthwhile()
                await self._finish_shards()
                if renewal.done():
                    await renewal
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await self._let_go()
            self._threads.shutdown(wait=False)

    # -- jobs in --

    async def _start_images(self) -> None:
        """Fills the places, best first. For that, every shard that may have due jobs shows its best one."""
        await self._refill()
        self._outcomes.extend(replace(_released(job), untouched=True) for job in self._backlog.release())
        while len(self._tasks) < self._stores.places(IN_HAND) and (job := self._backlog.pop()):
            task = asyncio.create_task(self._process(job))
            self._tasks[task] = job
            task.add_done_callback(lambda _: self._changed.set())
            await asyncio.sleep(0)  # it takes its place at its host before the next one is judged
            await self._refill()

    async def _refill(self) -> None:
        """Claims for shards that have nothing to start, around hosts whose jobs have to wait already."""
        crowded, now = self._backlog.crowded_hosts(), asyncio.get_running_loop().time()
        hungry = [
            shard
            for shard in self._shards.values()
            if shard.is_hungry(crowded, now) and not self._backlog.has_job_of(shard.name, beside=crowded)
        ]
        if not hungry or len(self._backlog) >= MAX_BACKLOG:
            return
        batch = max(4, min(MAX_CLAIM, CLAIMED_AHEAD // len(self._shards)))
        for job in await self._claim([shard.name for shard in hungry], batch, crowded):
            self._backlog.push(job)
            shard = self._shards[job.shard]
            shard.in_hand += 1
            shard.look_again_at = 0.0
            shard.tally.claimed()
        for shard in hungry:
            shard.left_out = crowded
            shard.may_have_due = self._backlog.has_job_of(shard.name, beside=crowded) and self._left != 0

    async def _claim(self, shards: Sequence[str], batch: int, leaving_out: frozenset[str]) -> list[DueJob]:
        total = len(shards) * batch if self._left is None else self._left
        jobs = await self._in_catalog_with_look(
            lambda connection: claim(
                connection, self._run, self._selection, shards, batch=batch, total=total, leaving_out=leaving_out
            )
        )
        if self._left is not None:
            self._left -= len(jobs)
        return jobs

    # -- outcomes out --

    async def _wait(self) -> None:
        """Until an image is done, or it is time to write, to look again or to poll."""
        now = asyncio.get_running_loop().time()
        idle = [shard.look_again_at - now for shard in self._shards.values() if shard.is_idle]
        timeout = min([SETTLE_EVERY_SECONDS if self._outcomes or self._backlog else POLL_SECONDS, *idle])
        if timeout > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
        self._changed.clear()

    def _collect(self) -> None:
        broken: BaseException | None = None
        for task in [task for task in self._tasks if task.done()]:
            job = self._tasks.pop(task)
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._outcomes.append(_released(job) if error else task.result())
            self._stores.note(self._outcomes[-1])
            broken = broken or error or self._stores.outage
        if broken:
            raise broken

    async def _settle_if_worthwhile(self) -> None:
        waited = asyncio.get_running_loop().time() - self._settled_at
        if len(self._outcomes) >= SETTLE_AT or (self._outcomes and (waited >= SETTLE_EVERY_SECONDS or not self._tasks)):
            await self._settle()

    async def _settle(self) -> None:
        batch = tuple(self._outcomes)
        held = await self._in_catalog_with_look(lambda connection: settle(connection, self._run, batch))
        self._outcomes.clear()
        self._settled_at = asyncio.get_running_loop().time()
        for outcome in batch:
            shard = self._shards[outcome.shard]
            shard.in_hand -= 1
            if outcome.job_id in held and not outcome.untouched:
                shard.tally.add(outcome)

    # -- the end of a shard --

    async def _finish_shards(self) -> None:
        now = asyncio.get_running_loop().time()
        idle = [shard for shard in self._shards.values() if shard.is_idle and shard.look_again_at <= now]
        if not idle:
            return
        finished = idle if self._left == 0 else await self._without_prospects(idle, now)
        rate = self.tally().images_per_second if finished else None
        for shard in finished:
            del self._shards[shard.name]
            shard.tally.close()
            self._finished.append(shard.tally)
            self._on_finished(ShardReport(shard.name, shard.tally, rate))

    async def _without_prospects(self, idle: list[_Shard], now: float) -> list[_Shard]:
        """Those of the idle shards in which nothing is due, about to be tried again, or held by another run."""
        horizon = longest_wait_in_run(self._selection.collection.retry)
        names = [shard.name for shard in idle]
        prospects = await self._in_catalog(
            lambda connection: outlook(connection, self._run, self._selection, names, horizon=horizon)
        )
        if any(prospect.held_by_others for prospect in prospects.values()):
            await self._release_dead_leases(names)
        finished = []
        for shard in idle:
            prospect = prospects[shard.name]
            if prospect.due:
                shard.may_have_due = True
                shard.look_again_at = now + (CROWDED_POLL_SECONDS if shard.left_out else POLL_SECONDS)
            elif prospect.held_by_others or prospect.next_attempt_in is not None:
                shard.look_again_at = now + _patience(prospect)
            elif self._gate.is_probing:  # the catalog has that host shut for other runs, and so for this look
                shard.look_again_at = now + POLL_SECONDS
            else:
                finished.append(shard)
        return finished

    # -- leases --

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY.total_seconds())
            try:
                await self._in_catalog(lambda connection: renew_leases(connection, self._run))
            except RunLostError:
                await self._regain_lock()

    async def _regain_lock(self) -> None:
        """After a restart of the catalog. If that still sees the dead session, the next renewal tries again."""
        if self._run.lock is None:
            raise RunLostError(f"run {self._run.run_id} has no lock of its own")
        jobs = [*self._tasks.values(), *self._backlog]
        in_hand = {job.job_id for job in jobs} | {outcome.job_id for outcome in self._outcomes}
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._run.lock.regain, in_hand)
        except RunAlreadyHeldError:
            pass
        except sa.exc.DBAPIError as error:
            if not is_away(error):
                raise

    async def _release_dead_leases(self, shards: Sequence[str]) -> None:
        await self._in_catalog(lambda connection: release_dead_leases(connection, shards))

    async def _let_go(self) -> None:
        """Writes the outcomes that there are and releases everything else in hand."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task, job in self._tasks.items():
            done = not task.cancelled() and task.exception() is None
            self._outcomes.append(task.result() if done else _released(job))
        self._tasks.clear()
        self._outcomes.extend(_released(job) for job in self._backlog.clear())
        if self._outcomes and not self._catalog_is_away:  # else leases end by themselves, with the run's lock
            await self._settle()

    async def _in_catalog_with_look(self, work: Callable[[sa.Connection], _T]) -> _T:
        """The gate learns what other runs know while there is a connection at hand."""
        result, seen = await self._in_catalog(lambda connection: (work(connection), self._gate.look(connection)))
        self._gate.see(seen)
        return result

    async def _in_catalog(self, work: Callable[[sa.Connection], _T]) -> _T:
        attempt = partial(transaction, self._catalog, work, patience=CATALOG_PATIENCE)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, attempt)
        except CatalogUnavailable as error:
            self._catalog_is_away = True
            raise Outage(FailureKind.CATALOG_UNAVAILABLE, str(error)) from error


def _patience(prospect: Outlook) -> float:
    """Seconds until a shard is worth another look."""
    waits = [POLL_SECONDS] if prospect.held_by_others else []
    if prospect.next_attempt_in is not None:
        waits.append(prospect.next_attempt_in.total_seconds())
    return min(waits)


def _released(job: DueJob) -> Outcome:
    return Outcome(
        job_id=job.job_id,
        asset_id=job.asset_id,
        shard=job.shard,
        verdict=Verdict.RELEASED,
        stage=Stage(job.stage),
        identity=job.identity,
        source_url=job.urls[0],
    )
