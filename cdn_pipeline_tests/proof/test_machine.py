"""The events of the proof. CDN_PIPELINE_PROOF_EXAMPLES=1000 looks longer than the test suite does."""

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum, auto
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.queue.leases import LEASE
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.discovery import Sighting
from cdn_pipeline.upkeep.rollout import pause_rollout, resume_rollout
from cdn_pipeline_tests.proof.databases import Catalog, open_catalog
from cdn_pipeline_tests.proof.driver import RECIPES, ROLLED_OUT, SHARDS_IN_USE, Driver
from cdn_pipeline_tests.proof.ending import all_ends_well
from cdn_pipeline_tests.proof.parts import Fate, Trouble
from cdn_pipeline_tests.proof.source import BEST, LESSER, Answer, Which

EXAMPLES = int(os.environ.get("CDN_PIPELINE_PROOF_EXAMPLES", "40"))


class End(StrEnum):
    """How a worker ends."""

    STOPPED = auto()
    KILLED = auto()
    CUT_OFF = auto()  # it lost its session, and goes on until it hears of it


NewRow = tuple[Which, tuple[int, ...], timedelta]

images = st.runner().flatmap(lambda machine: st.sampled_from(machine.images))
ranks = st.sampled_from([(LESSER, BEST), (LESSER,), (BEST,)])
answers = st.one_of(st.just(Answer.NOT_FOUND), st.sampled_from(Answer))
lifetimes = st.sampled_from([timedelta(hours=hours) for hours in (72, 200, 480, 0.3, -3)])
rows = st.tuples(st.sampled_from(Which), ranks, lifetimes)
spans = st.sampled_from([timedelta(seconds=seconds) for seconds in (2, 25, 61, 1200, 7300, 90_000, 350_000)])
selections = st.one_of(st.just(frozenset(Stage)), st.sets(st.sampled_from(Stage), min_size=1).map(frozenset))
fates = st.one_of(st.just(Fate()), st.builds(Fate, st.sampled_from(Trouble), st.integers(0, 4)))
recipes = st.sampled_from([RECIPES[0].name, ROLLED_OUT.name])

living = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.driver.workers)))
dead = st.runner().flatmap(lambda machine: st.sampled_from(sorted({"A", "B"} - set(machine.driver.workers))))
rolled_out = st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.rolled_out)))


class Mirroring(RuleBasedStateMachine):
    """A source, its host, discovery, two workers, an operator and the night, in any order."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.driver = Driver(catalog)
        self.images: list[str] = []
        self.looked: list[Sighting] = []
        self.rolled_out: set[str] = set()

    @initialize(images=st.sampled_from([["avatar"], ["post"], ["avatar", "post"]]))
    def there_are(self, images: list[str]) -> None:
        """Fewer images meet more of the events."""
        self.images = images
        for name in ("A", "B"):
            self.driver.start(name, frozenset(Stage))

    def teardown(self) -> None:
        try:
            if self.driver.is_sound:
                all_ends_well(self.driver, self.rolled_out)
        finally:
            self.driver.close()

    # -- the source and its host --

    @rule(image=images, row=rows)
    def a_row_is_written(self, image: str, row: NewRow) -> None:
        self.driver.write_row(image, *row)

    @rule(image=images, row=rows)
    def a_row_is_written_and_seen(self, image: str, row: NewRow) -> None:
        self.driver.write_row(image, *row)
        self.driver.record(self.driver.look(self.driver.world.source.rows[image][-1]))

    @precondition(lambda self: self.driver.workers)
    @rule(name=living, image=images, row=rows, fate=fates)
    def a_row_is_seen_while_a_worker_has_the_image(self, name: str, image: str, row: NewRow, fate: Fate) -> None:
        self.driver.claim(name, 10)
        self.driver.process_all(name, fate)
        self.a_row_is_written_and_seen(image, row)
        if name in self.driver.workers:
            self.driver.settle(name)

    @rule(image=images, rank=st.sampled_from([LESSER, BEST, BEST]), answer=answers)
    def the_host_answers_otherwise(self, image: str, rank: int, answer: Answer) -> None:
        self.driver.world.source.answer(image, rank, answer)

    @rule(image=images)
    def a_picture_is_replaced_in_place(self, image: str) -> None:
        self.driver.world.source.replace_in_place(image)

    @rule(by=spans)
    def time_passes(self, by: timedelta) -> None:
        self.driver.clock.advance(by)

    # -- discovery, cut in two: a look may be old when it is written --

    @rule(image=images, age=st.integers(0, 3))
    def discovery_looks_at_a_row(self, image: str, age: int) -> None:
        rows = self.driver.world.source.rows[image]
        if age < len(rows):
            self.looked.append(self.driver.look(rows[-1 - age]))

    @precondition(lambda self: self.looked)
    @rule()
    def discovery_records_what_it_saw(self) -> None:
        self.driver.record(self.looked.pop(0))

    # -- workers --

    @precondition(lambda self: len(self.driver.workers) < 2)
    @rule(name=dead, stages=selections, same_run=st.booleans())
    def a_worker_starts(self, name: str, stages: frozenset[Stage], same_run: bool) -> None:
        self.driver.start(name, stages, same_run=same_run)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living, count=st.integers(1, 3))
    def a_worker_claims(self, name: str, count: int) -> None:
        self.driver.claim(name, count)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living, fate=fates)
    def a_worker_does_an_image(self, name: str, fate: Fate) -> None:
        if self.driver.workers[name].in_hand:
            self.driver.process(name, fate)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living)
    def a_worker_settles_its_outcomes(self, name: str) -> None:
        self.driver.settle(name)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living, fate=fates)
    def a_worker_does_all_that_is_due(self, name: str, fate: Fate) -> None:
        self.driver.work(name, fate)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living)
    def a_worker_renews_its_leases(self, name: str) -> None:
        self.driver.renew(name)

    @precondition(lambda self: self.driver.workers)
    @rule(name=living, end=st.sampled_from(End))
    def a_worker_ends(self, name: str, end: End) -> None:
        match end:
            case End.STOPPED:
                self.driver.stop(name)
            case End.KILLED:
                self.driver.kill(name)
            case End.CUT_OFF:
                self.driver.workers[name].cut()

    @rule(after=st.sampled_from([timedelta(), LEASE + timedelta(seconds=1)]))
    def dead_leases_are_released(self, after: timedelta) -> None:
        self.driver.clock.advance(after)
        self.driver.release_dead_leases()

    # -- the operator and the night --

    @rule(from_originals=st.booleans(), force=st.booleans())
    def images_are_to_be_done_again(self, from_originals: bool, force: bool) -> None:
        self.driver.reopen(from_originals=from_originals, force=force or not from_originals)

    @precondition(lambda self: self.driver.collection.recipe != RECIPES[-1])
    @rule()
    def the_recipe_changes(self) -> None:
        self.driver.change_recipe()

    @rule()
    def the_originals_are_lost(self) -> None:
        self.driver.world.lose_originals()

    @rule()
    def night_falls(self) -> None:
        self.driver.release_retries()
        self.driver.reopen_refused()
        self.driver.open_checks()

    @rule()
    def the_queue_is_cleared_or_restored(self) -> None:
        is_held = any(job["held_at"] for job in self.driver.now.jobs.values())
        self.driver.execute(partial(restore_queue if is_held else hold_queue, collection=self.driver.collection))

    @rule(recipe=recipes, shards=st.integers(0, len(SHARDS_IN_USE)))
    def a_rollout_starts(self, recipe: str, shards: int) -> None:
        self.driver.start_rollout(recipe, shards=shards)
        self.rolled_out.add(recipe)

    @precondition(lambda self: self.rolled_out)
    @rule(recipe=rolled_out, change=st.sampled_from([pause_rollout, resume_rollout]))
    def a_rollout_is_paused_or_resumed(self, recipe: str, change: Callable[..., int]) -> None:
        self.driver.execute(partial(change, collection=self.driver.collection, recipe_name=recipe))

    @rule()
    def a_run_opens_the_jobs_of_rollouts(self) -> None:
        self.driver.open_rollout_jobs()


@pytest.fixture
def catalog(empty_database: str) -> Iterator[Catalog]:
    with open_catalog(empty_database) as catalog:
        yield catalog


@pytest.mark.timeout(600 + 3 * EXAMPLES)  # Hypothesis takes up to 300 s to shorten what it found
def test_whatever_happens_the_catalog_keeps_its_promises(catalog: Catalog) -> None:
    run_state_machine_as_test(
        partial(Mirroring, catalog),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            derandomize="CI" in os.environ,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
