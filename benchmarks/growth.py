"""What grows with the catalog: each operation at 10,000, 100,000 and 1,000,000 images, in the same run.

    .venv/bin/python -m benchmarks.growth [--images 1000000] [--rounds 7]

One embedded Postgres with a database for each size, which holds the catalog and the source rows that it came from. The
work is the same in each: as many jobs are due, as many ended in the hour that is counted, about as many rows are seen
again. Operations are the project's own functions, and are measured one after the other, over all catalogs in turn. The
server's buffers hold all three, as far as half of the machine's memory goes; `--buffers 256MB` is the embedded default.
`--images 10000000` takes an hour to fill and 45 GB of disk.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import psutil
import sqlalchemy as sa

from benchmarks.big_catalog import IMAGES_PER_PROFILE, end_within, fill, fill_source, profile_id, sign_again
from benchmarks.due_images import published, sightings
from benchmarks.report import Figure, Section, keep
from cdn_pipeline.api.profile_media import profiles_media
from cdn_pipeline.api.serving import Serving, open_serving
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import INSTAGRAM, SHARD_COUNT, SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.engine.discover import discover, take_in
from cdn_pipeline.engine.due_work import look_for_due_work
from cdn_pipeline.engine.stream import SETTLE_AT
from cdn_pipeline.observe.stats import HOUR, compute_hour, write_hour
from cdn_pipeline.orchestration.partitions import SHARDS_PER_RUN
from cdn_pipeline.orchestration.run_requests import Covered, plan_runs
from cdn_pipeline.orchestration.sensors import due_images_sensor
from cdn_pipeline.queue.due import Selection, claim
from cdn_pipeline.queue.leases import Run, hold_run
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.queue.watermarks import advance_watermarks
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.changes import marks_of_now

SIZES = (10_000, 100_000)  # and the one that is asked for
GOAL = 1.5  # the largest catalog's time by the smallest's

DUE = 4 * SETTLE_AT
LOOK_UPS = 50  # in a round, each of one profile
MANY_PROFILES = 100
JOBS_OF_THE_HOUR = 2_000
ROWS_SEEN_AGAIN = 15_625  # a shard of a million images; a smaller catalog shows as many in more shards
_BYTES_PER_IMAGE = 5_000  # catalog and source rows, with indexes
REPEATS = 5  # of anything else that repeats as it is

# When this began; an hour earlier than the last, which may not have settled.
LAST_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 2 * HOUR

_BASE_URL = "http://127.0.0.1:8000"
_EVERYTHING = Selection(INSTAGRAM, frozenset(Stage))


@dataclass(frozen=True, slots=True)
class Catalog:
    """A database that holds a catalog of `images` images and their source rows; `run` works on it."""

    images: int
    engine: sa.Engine
    serving: Serving
    run: Run
    chance: random.Random = field(default_factory=partial(random.Random, 0))

    @property
    def url(self) -> str:
        """For the environment."""
        return self.engine.url.render_as_string(hide_password=False)

    def profiles(self, count: int) -> list[str]:
        """Ids of different profiles."""
        return [profile_id(number) for number in self.chance.sample(range(self.images // IMAGES_PER_PROFILE), count)]

    def shards_seen_again(self) -> Sequence[str]:
        """A range of shards that shows `ROWS_SEEN_AGAIN` images, or as many as one shard or all have."""
        count = max(1, min(SHARD_COUNT, SHARD_COUNT * ROWS_SEEN_AGAIN // self.images))
        first = self.chance.randrange(SHARD_COUNT - count + 1)
        return SHARDS[first : first + count]


# -- the operations: each returns what a round took, by the names of figures --

Times = Mapping[str, float]


def tick(catalog: Catalog) -> Times:
    """The sensor as Dagster's daemon evaluates it, with nothing to do; in ms."""
    os.environ.update(CATALOG_DATABASE_URL=catalog.url, SOURCE_DATABASE_URL=catalog.url)
    with dg.DagsterInstance.ephemeral() as instance:

        def evaluate() -> None:
            with dg.build_sensor_context(instance=instance, definitions=defs) as context:
                assert due_images_sensor.evaluate_tick(context).skip_message

        evaluate()  # opens the databases
        return {"a sensor tick, nothing to do": _median_ms(evaluate, REPEATS)}


def look_up(catalog: Catalog) -> Times:
    """What the API reads for `GET …/media`, document included; in ms."""
    one = (catalog.profiles(1) for _ in range(LOOK_UPS))
    many = (catalog.profiles(MANY_PROFILES) for _ in range(REPEATS))

    def read(profiles: Iterator[list[str]]) -> None:
        ids = next(profiles)
        assert len(profiles_media(catalog.serving, ids, 12)) == len(ids)

    return {
        "media of one profile": _median_ms(partial(read, one), LOOK_UPS),
        f"media of {MANY_PROFILES} profiles": _median_ms(partial(read, many), REPEATS),
    }


def count_hour(catalog: Catalog) -> Times:
    """The last hour, as the hourly schedule counts and writes it; in ms."""
    return {f"statistics of the last hour, {JOBS_OF_THE_HOUR:,} jobs": _count(catalog, LAST_HOUR)}


def count_old_hour(catalog: Catalog) -> Times:
    """An hour of twenty days ago, as nobody counts it but after an outage of weeks; in ms."""
    return {"statistics of an hour twenty days ago": _count(catalog, LAST_HOUR - timedelta(days=20))}


def _count(catalog: Catalog, hour: datetime) -> float:
    def work(connection: sa.Connection) -> None:
        write_hour(connection, compute_hour(connection, hour))

    return _median_ms(lambda: transaction(catalog.engine, work), REPEATS)


def see_again(catalog: Catalog) -> Times:
    """A full scan of some shards' source rows, all URLs signed again, and once more; in ms per 1,000."""
    shards = catalog.shards_seen_again()
    sign_again(catalog.engine, shards[0], shards[-1])

    def scan() -> tuple[float, int]:
        started = time.perf_counter()
        images = sum(found.images for found in discover(catalog.engine, catalog.engine, INSTAGRAM, shards))
        return 1000 * (time.perf_counter() - started), images

    return {
        f"1,000 images seen again, {how}": 1000 * milliseconds / images
        for how in ("URLs signed again", "URLs unchanged")
        for milliseconds, images in [scan()]
    }


def work_off(catalog: Catalog) -> Times:
    """`DUE` images become due, half of them new, half with a new picture: found, claimed and published; in ms."""
    references = sightings(catalog.profiles(DUE))
    transaction(catalog.engine, partial(take_in, collection=INSTAGRAM, references=references))

    def find() -> None:
        work = look_for_due_work(catalog.engine, catalog.engine, INSTAGRAM)
        assert plan_runs(work, Covered(), shards_per_run=SHARDS_PER_RUN)

    finding = _median_ms(find, REPEATS)
    started = time.perf_counter()
    take = partial(claim, run=catalog.run, selection=_EVERYTHING, shards=SHARDS, batch=DUE, total=DUE)
    jobs = transaction(catalog.engine, take)
    claimed = time.perf_counter()
    assert len(jobs) == DUE
    outcomes = [published(job) for job in jobs]
    settling = []
    for start in range(0, DUE, SETTLE_AT):
        batch = outcomes[start : start + SETTLE_AT]
        began = time.perf_counter()
        held = transaction(catalog.engine, partial(settle, run=catalog.run, outcomes=batch))
        settling.append(1000 * (time.perf_counter() - began))
        assert len(held) == SETTLE_AT
    return {
        f"finding due work, {DUE} jobs due": finding,
        f"claiming {DUE} jobs": 1000 * (claimed - started),
        f"finishing a batch of {SETTLE_AT}": statistics.median(settling),
    }


OPERATIONS: Sequence[Callable[[Catalog], Times]] = (tick, look_up, count_hour, see_again, work_off)
MAY_GROW: Sequence[Callable[[Catalog], Times]] = (count_old_hour,)


def _median_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


# -- catalogs, and figures --


@contextmanager
def opened(server: EmbeddedPostgres, images: int) -> Iterator[Catalog]:
    """A catalog of that size, in a database of its own."""
    name = f"catalog_{images}"
    server.ensure_database(name)
    engine = sa.create_engine(server.url(name))
    migrate(engine, _BASE_URL)
    _fill(engine, images)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        settings = Settings(_env_file=None, catalog_database_url=server.url(name))  # type: ignore[call-arg]
        serving = stack.enter_context(open_serving(settings))
        yield Catalog(images, engine, serving, stack.enter_context(hold_run(engine, "growth")))


def _fill(engine: sa.Engine, images: int) -> None:
    started = time.perf_counter()
    fill(engine, images)
    fill_source(engine)
    end_within(engine, LAST_HOUR, JOBS_OF_THE_HOUR)
    marks = marks_of_now(engine)
    transaction(engine, partial(advance_watermarks, collection=INSTAGRAM, marks=marks, every_row=True))
    print(f"a catalog of {images:,} images, made in {time.perf_counter() - started:.0f} s", flush=True)


def measure(catalogs: Sequence[Catalog], rounds: int) -> list[Figure]:
    """All operations: their times by catalog, and how they grow from the first to the last."""
    figures = []
    for operation in (*OPERATIONS, *MAY_GROW):
        times: defaultdict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number in range(rounds + 1):
            for catalog in catalogs if number % 2 else catalogs[::-1]:
                taken = operation(catalog)
                for name, value in taken.items() if number else ():  # the first round warms up
                    times[name][catalog.images].append(value)
        for name, by_size in times.items():
            figures += (of_operation := _figures(name, by_size, None if operation in MAY_GROW else GOAL))
            print("\n".join(f"{figure.name}: {figure}" for figure in of_operation), flush=True)
    return figures


def _figures(name: str, by_size: Mapping[int, Sequence[float]], goal: float | None) -> list[Figure]:
    small, large = min(by_size), max(by_size)
    ratios = [above / below for above, below in zip(by_size[large], by_size[small], strict=True)]
    return [
        *(Figure(f"{name}: {images:,} images", tuple(values), "ms") for images, values in by_size.items()),
        Figure(f"{name}: {large:,} ÷ {small:,}", tuple(ratios), at_most=goal),
    ]


def room_for(images: int) -> str:
    """Postgres's buffers for catalogs of so many images altogether, as far as half of the memory goes."""
    wanted = images * _BYTES_PER_IMAGE
    return f"{min(wanted, psutil.virtual_memory().total // 2) >> 20}MB"


def run(images: int, rounds: int, buffers: str | None) -> None:
    """Makes the catalogs, measures, and keeps the section."""
    buffers = buffers or room_for(sum((*SIZES, images)))
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-growth-") as name, ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres", shared_buffers=buffers))
        catalogs = [stack.enter_context(opened(server, size)) for size in (*SIZES, images)]
        figures = measure(catalogs, rounds)
    keep(
        Section(
            name="growth",
            title="Growth with the catalog",
            command=f".venv/bin/python -m benchmarks.growth --images {images} --rounds {rounds} --buffers {buffers}",
            figures=figures,
            notes=[
                "The work is the same in each catalog: what is due, what ended in the hour, how many rows are seen. "
                f"Postgres has {buffers} of buffers.",
                "An old hour reads whatever was finished since it began, because that may have been open in it.",
            ],
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the largest catalog")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--buffers", help="of Postgres, such as 256MB; by default, room for all catalogs")
    arguments = parser.parse_args()
    run(arguments.images, arguments.rounds, arguments.buffers)
