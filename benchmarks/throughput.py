"""End to end against the bare codec, in the same run: images per second from first claim to last committed outcome.

    .venv/bin/python -m benchmarks.throughput [--images 2000 --shards 8 --rounds 3]

Photographs of 1080 px from the demo's origin (a process of its own, no faults, pictures made beforehand); the Dagster
job over a range of shards; originals and both renditions stored in folders; catalog on the embedded Postgres. The bare
codec is the recipe's `transcode` on the same bytes from memory, in as many processes as there are cores, prepared as
the pipeline's workers are; and plain Pillow's calls with the same settings, in processes as they come. They take turns,
codec, run, codec, run, codec; a run is compared with the mean of the codec before and after it, so that a noisy machine
hits both sides.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path

import psutil
import sqlalchemy as sa
from PIL import Image

from benchmarks.jobs import Watched, cpu_seconds, run_job
from benchmarks.report import Figure, Section, keep
from benchmarks.threads import START
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, DEMO_DATABASE
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.media.allocator import keep_freed_memory
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode
from cdn_pipeline.sources.app_database import shard_bounds

CORES = len(sched_getaffinity(0))
POSTS_PER_PROFILE = 12
ASSETS = 4  # that report each shard


def with_recipe(data: bytes) -> int:
    """The recipe's calls on one original."""
    return sum(len(rendition.data) for rendition in transcode(data, WEBP_THUMBNAILS).renditions)


def with_plain_pillow(data: bytes) -> int:
    """What anybody would write with Pillow: full decode, Lanczos, the same encoder settings."""
    total = 0
    with Image.open(BytesIO(data)) as image:
        image.load()
        for size in WEBP_THUMBNAILS.sizes:
            scale = min(size.width / image.width, size.height / image.height, 1)
            box = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            buffer = BytesIO()
            image.resize(box, Image.Resampling.LANCZOS).save(
                buffer, "WEBP", quality=WEBP_THUMBNAILS.quality, method=WEBP_THUMBNAILS.effort
            )
            total += buffer.tell()
    return total


def bare(pool: ProcessPoolExecutor, codec: Callable[[bytes], int], originals: Sequence[bytes]) -> float:
    """Images per second of codec calls alone, on all cores."""
    started = time.monotonic()
    for _ in pool.map(codec, originals, chunksize=8):
        pass
    return len(originals) / (time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """One run of the job; CPU in seconds."""

    images: int
    seconds: float  # first claim to last committed outcome
    watched: Watched
    postgres_cpu: float
    origin_cpu: float

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True, slots=True)
class World:
    """Where the runs happen."""

    var: Path
    server: EmbeddedPostgres
    origin: psutil.Process
    last_shard: str
    definitions: str = "cdn_pipeline.definitions"
    environment: Mapping[str, str] | None = None  # of the job, beside what it has anyway

    def run_from_nothing(self) -> EndToEnd:
        """Forgets catalog and stores, then runs the job."""
        self._forget()
        return self.run(self.last_shard)

    def run(self, last_shard: str) -> EndToEnd:
        """Runs the job on what is there, from the first shard to this one."""
        postgres = self.postgres()
        before = cpu_seconds(postgres), cpu_seconds(self.origin)
        watched = run_job(self.var, self.environment, definitions=self.definitions, last=last_shard, postgres=postgres)
        if watched.exit_status != 0:
            sys.exit(f"the job ended with status {watched.exit_status}, see {self.var / 'job.log'}")
        engine = sa.create_engine(self.server.url(CATALOG_DATABASE))
        with engine.connect() as connection:
            row = connection.execute(
                sa.text("""
                    SELECT count(*) AS images,
                           extract(epoch FROM max(completed_at) - min(first_started_at))::float AS seconds
                    FROM cdn_image_jobs WHERE status = 'completed'""")
            ).one()
        engine.dispose()
        spent = cpu_seconds(postgres) - before[0], cpu_seconds(self.origin) - before[1]
        return EndToEnd(row.images, row.seconds, watched, *spent)

    def originals(self) -> list[bytes]:
        """The bytes that the last run downloaded."""
        return [file.read_bytes() for file in (self.var / "originals" / "originals").rglob("*") if file.is_file()]

    def downloaded_urls(self) -> list[str]:
        """The source URLs that the last run has mirrored."""
        engine = sa.create_engine(self.server.url(CATALOG_DATABASE))
        completed = "SELECT source_url FROM cdn_image_assets WHERE processing_status = 'completed' ORDER BY id"
        with engine.connect() as connection:
            urls = list(connection.execute(sa.text(completed)).scalars())
        engine.dispose()
        return urls

    def postgres(self) -> psutil.Process:
        """The server of the catalog."""
        file = next((self.var / "postgres").rglob("postmaster.pid"))
        return psutil.Process(int(file.read_text().split()[0]))

    def _forget(self) -> None:
        engine = sa.create_engine(self.server.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {CATALOG_DATABASE} WITH (FORCE)"))
        engine.dispose()
        for folder in ("objects", "originals", "storage", "history", "schedules"):
            shutil.rmtree(self.var / folder, ignore_errors=True)


@contextmanager
def world(images: int, shards: int) -> Iterator[World]:
    """A world of about so many images, all in the first shards."""
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-bench-") as name:
        var = Path(name)
        var.chmod(0o755)
        port = free_port(0)
        url = f"http://127.0.0.1:{port}"
        command = ["--port", str(port), "--state-dir", str(var / "demo"), "--secret", "bench", "--no-faults"]
        with (
            EmbeddedPostgres(var / "postgres") as server,
            running(python("-m", "cdn_pipeline.demo.origin", *command), var / "origin.log", ready_url=url) as origin,
        ):
            server.ensure_database(DEMO_DATABASE)
            engine = sa.create_engine(server.url(DEMO_DATABASE))
            last_shard = SHARDS[shards - 1]
            fill(engine, Signer(url, "bench"), images, last_shard)
            engine.dispose()
            yield World(var, server, psutil.Process(origin.pid), last_shard)


def fill(engine: sa.Engine, signer: Signer, images: int, last_shard: str) -> None:
    """Draws profiles for all shards and keeps those of the first ones."""
    drawn = images * len(SHARDS) // (SHARDS.index(last_shard) + 1) // (POSTS_PER_PROFILE + 1) + 1
    app_database.create_tables(engine)
    app_database.populate(engine, signer, profiles=drawn, posts_per_profile=POSTS_PER_PROFILE, nasty_rows=False)
    _, last = shard_bounds(SHARDS[0], last_shard)
    with engine.begin() as connection:
        for delete in ("DELETE FROM posts WHERE profile_id > :last", "DELETE FROM profiles WHERE id > :last"):
            connection.execute(sa.text(delete), {"last": last})


@dataclass(slots=True)
class Rounds:
    """What was measured: per round a run, and each codec alone as the mean of before and after the run."""

    originals: Sequence[bytes]
    runs: list[EndToEnd] = field(default_factory=list)
    recipe: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    _latest: list[float] = field(default_factory=list)  # both codecs alone, as they were after the last run

    def add(self, place: World, ours: ProcessPoolExecutor, plain: ProcessPoolExecutor) -> None:
        """One round."""
        codecs = ((ours, with_recipe), (plain, with_plain_pillow))
        before = self._latest or [bare(pool, codec, self.originals) for pool, codec in codecs]
        self.runs.append(place.run_from_nothing())
        self._latest = [bare(pool, codec, self.originals) for pool, codec in codecs]
        for rates, pair in zip((self.recipe, self.plain), zip(before, self._latest, strict=True), strict=True):
            rates.append(statistics.harmonic_mean(pair))


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        world(options.images, options.shards) as place,
        ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), initializer=keep_freed_memory) as ours,
        ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as plain,
    ):
        place.run_from_nothing()  # not counted: the origin makes its pictures
        rounds = Rounds(place.originals())
        for number in range(options.rounds):
            rounds.add(place, ours, plain)
            rates = f"{rounds.runs[-1].rate:.1f}/s, recipe {rounds.recipe[-1]:.1f}/s, Pillow {rounds.plain[-1]:.1f}/s"
            print(f"round {number + 1} of {options.rounds}: end to end {rates}", file=sys.stderr)
        idle_one, idle_all = (place.run(shard).watched.seconds for shard in (SHARDS[0], SHARDS[-1]))
    command = f"python -m benchmarks.throughput --images {options.images} --rounds {options.rounds}"
    keep(section(rounds, (idle_all - idle_one) / (len(SHARDS) - 1), command))


def section(rounds: Rounds, seconds_per_shard: float, command: str) -> Section:
    """What was measured; `seconds_per_shard` is what a run takes longer for each further shard."""
    runs = rounds.runs
    return Section(
        name="codec",
        title="Against the codec alone",
        command=command,
        figures=[
            Figure("end to end ÷ the recipe's codec calls", _ratios(runs, rounds.recipe), at_least=0.95),
            Figure("end to end ÷ plain Pillow's calls", _ratios(runs, rounds.plain), at_least=1.05),
            Figure("end to end", tuple(run.rate for run in runs), "images/s", decimals=1),
            Figure("the recipe's codec calls, all cores", tuple(rounds.recipe), "images/s", decimals=1),
            Figure("plain Pillow's calls, all cores", tuple(rounds.plain), "images/s", decimals=1),
            Figure("cores busy while images are in hand", tuple(map(_busy, runs)), "%", decimals=0),
            Figure("fixed cost of a run", tuple(run.watched.seconds - run.seconds for run in runs), "s", decimals=1),
            Figure("each further shard, for each of its four assets", (1000 * seconds_per_shard / ASSETS,), "ms", 0),
            Figure("peak memory: run, workers, Postgres", tuple(r.watched.peaks["all"] for r in runs), "MB", 0),
            *(
                Figure(f"CPU per image: {kind}", tuple(values), "ms", decimals=1)
                for kind, values in _cpu_by_stage(runs).items()
            ),
        ],
        notes=[
            f"{runs[0].images} photographs of 1080 px, {_mean_size(rounds.originals):,} bytes on average; 256 and "
            "512 px, quality 85, method 6; originals kept, stores in folders, catalog on the embedded Postgres. From "
            "the first claim to the last committed outcome; Dagster's start is in the fixed cost and in CPU.",
        ],
    )


def _busy(run: EndToEnd) -> float:
    """Percent; Dagster's start, before the first claim, is left out."""
    spent = run.watched.workers_cpu + run.watched.run_cpu + run.postgres_cpu + run.origin_cpu
    return 100 * (spent - run.watched.threads_cpu.get(START, 0.0)) / (run.seconds * CORES)


def _ratios(runs: Sequence[EndToEnd], alone: Sequence[float]) -> tuple[float, ...]:
    return tuple(run.rate / rate for run, rate in zip(runs, alone, strict=True))


def _mean_size(originals: Sequence[bytes]) -> int:
    return sum(map(len, originals)) // len(originals)


def _cpu_by_stage(runs: Sequence[EndToEnd]) -> dict[str, list[float]]:
    kinds = sorted({kind for run in runs for kind in run.watched.threads_cpu})
    seconds: dict[str, list[float]] = {
        "transcode, in the workers": [run.watched.workers_cpu for run in runs],
        **{kind: [run.watched.threads_cpu.get(kind, 0.0) for run in runs] for kind in kinds},
        "Postgres": [run.postgres_cpu for run in runs],
        "the origin (not ours)": [run.origin_cpu for run in runs],
    }
    return {
        kind: [1000 * value / run.images for value, run in zip(values, runs, strict=True)]
        for kind, values in seconds.items()
    }


if __name__ == "__main__":
    main()
