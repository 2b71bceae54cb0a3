"""A run as the machine drives it: step by step, so that it can be stopped, cut off or killed between any two."""

import asyncio
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field

import sqlalchemy as sa

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.engine.images import ImageProcessor
from cdn_pipeline.queue.due import DueJob, Selection, claim
from cdn_pipeline.queue.leases import Run, hold_run, renew_leases
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.proof.databases import Catalog
from cdn_pipeline_tests.proof.parts import Fate, Trouble, World

# Waits until the session is gone, and its advisory lock with it.
_END_SESSION = sa.text("""
    SELECT pg_terminate_backend(pid, 5000)
    FROM pg_locks JOIN cdn_runs ON lock_key = (classid::bigint << 32) | objid::bigint
    WHERE locktype = 'advisory' AND run_id = :run_id
""")


@dataclass(slots=True)
class Worker:
    """A living run, the jobs it has claimed, and the outcomes that it has not written yet."""

    catalog: Catalog
    world: World
    run: Run
    selection: Selection
    processor: ImageProcessor
    session: ExitStack
    in_hand: list[DueJob] = field(default_factory=list)
    pocket: list[tuple[DueJob, Outcome]] = field(default_factory=list)

    @classmethod
    def start(cls, catalog: Catalog, world: World, run_id: str, selection: Selection) -> "Worker":
        """Begins a run, on a session of its own."""
        session = ExitStack()
        run = session.enter_context(hold_run(catalog.sessions, run_id))
        processor = ImageProcessor(world.parts(), selection.collection, selection.stages)
        return cls(catalog, world, run, selection, processor, session)

    def __repr__(self) -> str:
        return self.run.run_id

    def claim(self, count: int) -> list[DueJob]:
        """Takes so many due jobs at most."""
        with self.catalog.statements.begin() as connection:
            claimed = claim(connection, self.run, self.selection, SHARDS, batch=count, total=count)
        self.in_hand += claimed
        return claimed

    def process(self, runner: asyncio.Runner, fate: Fate) -> None:
        """Does the first job in hand.

        Raises:
            Killed: that was the trouble of this attempt.
        """
        self.world.fate.trouble, self.world.fate.puts_before = fate.trouble, fate.puts_before
        job = self.in_hand.pop(0)
        try:
            self.pocket.append((job, runner.run(self.processor.process(job))))
        finally:
            self.world.fate.trouble = Trouble.NOTHING

    def settle(self) -> dict[uuid.UUID, tuple[DueJob, Outcome]]:
        """Writes the outcomes there are; returns those that counted, by job."""
        with self.catalog.transactions.begin() as connection:
            held = settle(connection, self.run, [outcome for _, outcome in self.pocket])
        settled = {job.job_id: (job, outcome) for job, outcome in self.pocket if job.job_id in held}
        self.pocket.clear()
        return settled

    def let_go(self) -> None:
        """What was claimed and not begun is to be released with the next outcomes."""
        self.pocket += [(job, _released(job)) for job in self.in_hand]
        self.in_hand.clear()

    def renew(self) -> None:
        """Extends the leases.

        Raises:
            RunLostError: the session is gone.
        """
        with self.catalog.statements.begin() as connection:
            renew_leases(connection, self.run)

    def cut(self) -> None:
        """Ends the session without a word; the process lives on."""
        with self.catalog.statements.begin() as connection:
            connection.execute(_END_SESSION, {"run_id": self.run.run_id})

    def end(self) -> None:
        """Ends the run; after `cut` the catalog does not hear of it."""
        self.session.close()


def _released(job: DueJob) -> Outcome:
    return Outcome(job.job_id, job.asset_id, job.shard, Verdict.RELEASED, job.stage, job.identity, job.urls[0])
