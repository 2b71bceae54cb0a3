"""Calls the code under test, one step at a time, and has every step judged."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import islice

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS, Size
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.freshness import open_checks, release_retries, reopen_refused
from cdn_pipeline.queue.intake import known_images, lock_images, record
from cdn_pipeline.queue.leases import RunLostError, release_dead_leases
from cdn_pipeline.queue.reopen import open_jobs_again, open_rollout_jobs
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.discovery import Change, ImageReference, Sighting, compare
from cdn_pipeline.upkeep.rollout import start_rollout
from cdn_pipeline_tests.proof.audit import Audit
from cdn_pipeline_tests.proof.clock import StoppedClock
from cdn_pipeline_tests.proof.databases import Catalog
from cdn_pipeline_tests.proof.parts import Fate, Killed, World
from cdn_pipeline_tests.proof.snapshot import Snapshot, Step
from cdn_pipeline_tests.proof.source import IMAGES, Which
from cdn_pipeline_tests.proof.workers import Worker

SIZES = (Size("256", 4, 4), Size("512", 8, 8))
RECIPES = [replace(INSTAGRAM.recipe, version=1 + n, quality=90 - 20 * n, sizes=SIZES, effort=0) for n in range(3)]
ROLLED_OUT = replace(AVIF_THUMBNAILS, sizes=SIZES, effort=10)
SHARDS_IN_USE = sorted({shard for shard, _ in IMAGES.values()})

_EMPTY = sa.text("TRUNCATE cdn_image_assets, cdn_runs, cdn_rollouts CASCADE")


class Driver:
    """A catalog that begins empty, the world around it, and two workers, `A` and `B`."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        with catalog.statements.begin() as connection:
            connection.execute(_EMPTY)
        self.clock = StoppedClock(catalog.statements)
        self.world = World()
        self.collection = replace(INSTAGRAM, recipe=RECIPES[0], rollouts=(ROLLED_OUT,))
        self.workers: dict[str, Worker] = {}  # those that live
        self.is_sound = True
        self.now = Snapshot.of(catalog.statements)
        self._audit = Audit(self.world, {(recipe.name, recipe.version): recipe for recipe in (*RECIPES, ROLLED_OUT)})
        self._runs = dict.fromkeys("AB", 0)
        self._asyncio = asyncio.Runner()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.end()
        self._asyncio.close()
        self.clock.close()

    @contextmanager
    def step(self) -> Iterator[Step]:
        """One call of the code under test; afterwards `now` is what it left, and sound."""
        self.is_sound = False
        step = Step()
        yield step
        before, self.now = self.now, Snapshot.of(self.catalog.statements)
        self._audit.check(before, self.now, step, self.clock.now)
        self.is_sound = True

    def execute(self, work: Callable[[sa.Connection], object], *, reopens: bool = False) -> None:
        """A step of one statement."""
        with self.step() as step, self.catalog.statements.begin() as connection:
            step.reopens = reopens
            work(connection)

    # -- source and discovery --

    def write_row(self, image: str, which: Which, ranks: tuple[int, ...], lives: timedelta) -> None:
        self.clock.advance(timedelta(seconds=1))  # rows of one image have times of their own
        self.world.source.show(image, which)
        self.world.source.sign(image, ranks, lives, self.clock.now)

    def look(self, row: ImageReference) -> Sighting:
        """Discovery's first look, which locks nothing."""
        with self.catalog.statements.begin() as connection:
            return self._compare(connection, row)

    def record(self, sighting: Sighting) -> None:
        """Discovery's second look and its writing, in one transaction, as `engine.discover` does it."""
        row = sighting.reference
        with self.step() as step, self.catalog.transactions.begin() as connection:
            if sighting.change in (Change.CHANGED, Change.RESIGNED):
                lock_images(connection, [row.key])
                sighting = self._compare(connection, row)
            record(connection, self.collection, [sighting])
            if sighting.change is Change.CHANGED:
                step.changed.add(row.key.source_id)

    def _compare(self, connection: sa.Connection, row: ImageReference) -> Sighting:
        return compare(row, known_images(connection, [row.key]).get(row.key), self.clock.now)

    # -- workers --

    def start(self, name: str, stages: frozenset[Stage], *, same_run: bool = False) -> None:
        """In a new run, or as the next process of the run before."""
        self._runs[name] += not same_run
        with self.step():
            selection = Selection(self.collection, stages)
            self.workers[name] = Worker.start(self.catalog, self.world, f"{name}{self._runs[name]}", selection)

    def claim(self, name: str, count: int) -> None:
        with self.step() as step:
            step.claimed = self.workers[name].claim(count)

    def process(self, name: str, fate: Fate) -> None:
        """Does the first image in hand; the outcome stays with the worker, unless it dies of this attempt."""
        try:
            self.workers[name].process(self._asyncio, fate)
        except Killed:
            self.kill(name)

    def process_all(self, name: str, fate: Fate) -> None:
        """Does all images in hand, or dies of one."""
        while name in self.workers and self.workers[name].in_hand:
            self.process(name, fate)

    def settle(self, name: str) -> None:
        if not self.workers[name].pocket:
            return
        with self.step() as step:
            step.run_id = self.workers[name].run.run_id
            settled = self.workers[name].settle()
            step.settled = {job_id: outcome for job_id, (_, outcome) in settled.items()}
            step.tried = {job_id: job.urls[0] for job_id, (job, _) in settled.items()}

    def work(self, name: str, fate: Fate) -> None:
        """Claims, does and settles all that is due."""
        self.claim(name, 10)
        self.process_all(name, fate)
        if name in self.workers:
            self.settle(name)

    def renew(self, name: str) -> None:
        with self.step():
            try:
                self.workers[name].renew()
            except RunLostError:
                self.kill(name)

    def stop(self, name: str) -> None:
        """In order: what was not begun is due again at once."""
        self.workers[name].let_go()
        self.settle(name)
        with self.step():
            self.workers.pop(name).end()

    def kill(self, name: str) -> None:
        worker = self.workers.pop(name)
        worker.cut()
        worker.end()

    def release_dead_leases(self) -> None:
        self.execute(lambda connection: release_dead_leases(connection, SHARDS))
        living = {worker.run.run_id for worker in self.workers.values()}
        for job in self.now.jobs.values():
            assert job["lease_until"] is None or (job["run_id"] in living and job["lease_until"] >= self.clock.now)

    # -- operator and night --

    def reopen(self, *, from_originals: bool, force: bool) -> None:
        self.execute(
            lambda connection: open_jobs_again(
                connection,
                self.collection,
                SHARDS,
                from_originals=from_originals,
                force=force,
                owner_ids=None,
                limit=None,
            ),
            reopens=True,
        )

    def change_recipe(self) -> None:
        """For runs that start from now on; those that live end with the code they began with."""
        self.collection = replace(self.collection, recipe=RECIPES[self.collection.recipe.version])

    def start_rollout(self, recipe: str, *, shards: int = len(SHARDS_IN_USE)) -> None:
        """Interrupted after so many shards; the others are opened by runs."""
        with self.step() as step:
            step.reopens = True
            list(islice(start_rollout(self.catalog.transactions, self.collection, recipe), shards))

    def open_rollout_jobs(self) -> None:
        """As every run does when it begins."""
        self.execute(lambda connection: open_rollout_jobs(connection, self.collection, SHARDS), reopens=True)

    def release_retries(self) -> None:
        self.execute(lambda connection: release_retries(connection, self.collection, SHARDS))

    def reopen_refused(self) -> None:
        self.execute(lambda connection: reopen_refused(connection, self.collection, SHARDS), reopens=True)

    def open_checks(self) -> None:
        self.execute(lambda connection: open_checks(connection, self.collection, SHARDS), reopens=True)
