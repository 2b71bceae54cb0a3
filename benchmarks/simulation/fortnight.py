"""The simulated fortnight: two weeks of the pipeline at work in a quarter of an hour, and what came of them.

Everything is real but the time: Postgres, the origin, the project's own definitions on a Dagster instance, its sensor
and its schedules. Dagster's daemon is played by `daemon`, the outside world by `happenings`. Between what happens the
clocks jump (`timeline`); while a run works, time goes on as usual. One origin outage, one stopped daemon and one run
that is killed are part of it; nobody mends anything by hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import dagster as dg
import sqlalchemy as sa

from benchmarks.simulation import history
from benchmarks.simulation.daemon import Daemon
from benchmarks.simulation.doomed_run import start_and_kill
from benchmarks.simulation.fortnight_result import Result
from benchmarks.simulation.happenings import BadHours, Weather, World
from benchmarks.simulation.simulated_stage import SimulatedStage, open_simulated_stage
from benchmarks.simulation.timeline import Travel
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.demo.proof import catalog_state
from cdn_pipeline.orchestration.resources import MirrorResource

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(minutes=20)  # of the sensor; 20 s in production
_BEFORE_THE_HOUR = timedelta(seconds=2)  # every third tick: its runs work across the end of the hour
_SCHEDULES_AT = (timedelta(minutes=5), timedelta(minutes=10))  # past the hour; the night's runs begin with the first
_SLOW_SECONDS = 0.2
_IN_RUN = (timedelta(milliseconds=50),) * len(INSTAGRAM.retry.in_run)  # real time: 5, 10 and 20 s would add up to hours

BuildDefinitions = Callable[..., dg.Definitions]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played. The same plan is the same world; `start` is the first moment of an hour."""

    start: datetime
    days: float = 14.0
    profiles_at_first: int = 15
    profiles_per_day: float = 2.5
    posts_per_profile: int = 3
    outage: timedelta = timedelta(hours=8)
    daemon_stopped: timedelta = timedelta(hours=6)
    seed: int = 1

    @property
    def hours(self) -> int:
        """Whole hours of the simulation."""
        return round(self.days * 24)

    @property
    def end(self) -> datetime:
        """The end of the last hour."""
        return self.start + self.hours * HOUR

    @property
    def finish(self) -> datetime:
        """When the last hour has been counted and checked."""
        return self.end + 2 * _SCHEDULES_AT[-1]

    @property
    def killed_at(self) -> datetime:
        """When a run is killed."""
        return self._at(0.15)

    @property
    def bad_hours(self) -> Sequence[BadHours]:
        """The origin's: one to four hours every day, and the outage."""
        chance, outage = Random(self.seed), self._at(0.35)
        bad = [BadHours(outage, outage + self.outage, 1.0)]
        for day in range(int(self.days)):
            start = self.start + (day + chance.random()) * DAY
            bad.append(BadHours(start, start + (1 + 3 * chance.random()) * HOUR, 0.3 + 0.6 * chance.random()))
        return bad

    def daemon_runs(self, now: datetime) -> bool:
        """Whether Dagster's daemon is up."""
        stopped = self._at(0.7)
        return not stopped <= now < stopped + self.daemon_stopped

    def _at(self, share: float) -> datetime:
        return self.start + share * (self.end - self.start)


class QuickMirror(MirrorResource):
    """Mirrors as always, but what is tried again within a run is tried again at once."""

    @property
    def collection(self) -> Collection:
        """Instagram's, with a quick ladder inside the run; the later steps are as they are."""
        return replace(INSTAGRAM, retry=replace(INSTAGRAM.retry, in_run=_IN_RUN))


def play(plan: Plan, folder: Path, *, build_definitions: BuildDefinitions, travel: Travel, say: Say) -> Result:
    """Plays the plan with all state in an empty folder; `say` is told how far it is, once a simulated day.

    `travel` moves this process's clock, and must be able to move it to the plan's start.
    """
    weather = Weather(plan.bad_hours, seed=plan.seed)
    with (
        open_simulated_stage(folder, plan.start, travel) as stage,
        running_origin(folder / "pictures", misbehaviour=weather, slow_seconds=_SLOW_SECONDS) as origin,
    ):
        definitions = build_definitions(resources={"mirror": QuickMirror()})
        daemon = Daemon(definitions, stage.instance, since=plan.start)
        doomed_job = definitions.resolve_job_def("publish_images")
        return _Show(plan, stage, origin, daemon, doomed_job, say).play()


@dataclass(slots=True)
class _Show:
    """The plan at work."""

    plan: Plan
    stage: SimulatedStage
    origin: Origin
    daemon: Daemon
    doomed_job: dg.JobDefinition
    say: Say
    taken_over: int = 0

    def play(self) -> Result:
        """Plans everything, lets it happen, and counts."""
        plan = self.plan
        world = World(self.stage.source, self.origin, self.stage.timeline, seed=plan.seed, posts=plan.posts_per_profile)
        world.begin(plan.start, plan.end, at_first=plan.profiles_at_first, per_day=plan.profiles_per_day)
        self.stage.timeline.at(plan.killed_at, lambda now: self._kill_a_run(world, now))
        for hour in range(plan.hours + 1):
            self._plan_hour(plan.start + hour * HOUR)
        for day in range(1, int(plan.days) + 1):
            self.stage.timeline.at(plan.start + day * DAY, self._tell)
        self.stage.timeline.run(until=plan.finish)
        return self._result(world)

    def _plan_hour(self, hour: datetime) -> None:
        for past in _SCHEDULES_AT:
            self.stage.timeline.at(hour + past, self._keep_schedules)
        for number in range(HOUR // TICK):
            self.stage.timeline.at(hour + number * TICK - _BEFORE_THE_HOUR, self._tick)

    def _keep_schedules(self, now: datetime) -> None:
        if self.plan.daemon_runs(now):
            self.daemon.keep_schedules(now)

    def _tick(self, now: datetime) -> None:
        if self.plan.daemon_runs(now):
            self.daemon.keep_schedules(now)
            self.daemon.ask_sensors()

    def _kill_a_run(self, world: World, now: datetime) -> None:
        world.add_profile(now)
        self.taken_over = start_and_kill(self.doomed_job, self.stage.instance)

    def _tell(self, now: datetime) -> None:
        day = round((now - self.plan.start) / DAY)
        state = catalog_state(self.stage.catalog)
        runs = self.daemon.record.runs.total()
        self.say(f"day {day}: {runs} runs, {state.published} of {state.images} images published, {state.lost} lost")

    def _result(self, world: World) -> Result:
        with self.stage.catalog.connect() as connection:
            published = _published(connection)
            comparison = history.compare(connection, self.plan.start, self.plan.hours)
        return Result(
            days=self.plan.days,
            record=self.daemon.record,
            state=catalog_state(self.stage.catalog),
            requests=self.origin.requests.by_outcome(),
            profiles=world.profiles,
            arrived_dead=len(world.dead),
            healed=sum(bool(published.get(post)) for post in world.dead),
            replaced=len(world.replaced),
            waits=sorted(_waits(world, published)),
            taken_over=self.taken_over,
            comparison=comparison,
        )


def _published(connection: sa.Connection) -> Mapping[str, Sequence[datetime]]:
    """When renditions became visible, by the row (profile or post) that their picture belongs to."""
    rows = connection.execute(
        sa.text("""
            SELECT source_id, array_agg(r.published_at ORDER BY r.published_at) AS moments
            FROM cdn_image_renditions r JOIN cdn_image_assets a ON a.id = r.asset_id
            WHERE r.published_at IS NOT NULL GROUP BY source_id""")
    )
    return {row.source_id: row.moments for row in rows}


def _waits(world: World, published: Mapping[str, Sequence[datetime]]) -> Iterator[timedelta]:
    """From the insert of a row, and from the change of an avatar, to the first rendition after it."""
    for row, inserted in (*world.inserted.items(), *world.replaced):
        if shown := next((moment for moment in published.get(row, ()) if moment > inserted), None):
            yield shown - inserted
