"""End to end against the bare codec, in the same run: images per second from first claim to last committed outcome.

    make bench        (or: .venv/bin/python -m benchmarks.throughput --images 1000 --rounds 3)

Photographs of 1080 px from the demo's origin (a process of its own, no faults, pictures made beforehand); the Dagster
job over all shards; originals and both renditions stored in folders; catalog on the embedded Postgres. The bare codec
is the recipe's `transcode` on the same bytes from memory, in as many processes as there are cores, and plain Pillow's
calls with the same settings. Rounds are interleaved; ratios are per round, so that a noisy machine hits both sides.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path

import sqlalchemy as sa
from PIL import Image

from benchmarks.jobs import Watched, run_job
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, DEMO_DATABASE
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode

CORES = len(sched_getaffinity(0))
POSTS_PER_PROFILE = 12


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
    """One run of the job."""

    images: int
    seconds: float  # first claim to last committed outcome
    watched: Watched

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True, slots=True)
class World:
    """Where the runs happen."""

    var: Path
    server: EmbeddedPostgres

    def run_from_nothing(self) -> EndToEnd:
        """Forgets catalog and stores, then runs the job."""
        self._forget()
        return self.run()

    def run(self) -> EndToEnd:
        """Runs the job on what is there."""
        watched = run_job(self.var)
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
        return EndToEnd(row.images, row.seconds, watched)

    def originals(self) -> list[bytes]:
        """The bytes that the last run downloaded."""
        return [file.read_bytes() for file in (self.var / "originals" / "originals").rglob("*") if file.is_file()]

    def _forget(self) -> None:
        engine = sa.create_engine(self.server.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE IF EXISTS {CATALOG_DATABASE} WITH (FORCE)"))
        engine.dispose()
        for folder in ("objects", "originals", "storage", "history", "schedules"):
            shutil.rmtree(self.var / folder, ignore_errors=True)


@contextmanager
def world(images: int) -> Iterator[World]:
    """A world of about so many images."""
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-bench-") as name:
        var = Path(name)
        var.chmod(0o755)
        port = free_port(0)
        url = f"http://127.0.0.1:{port}"
        command = ["--port", str(port), "--state-dir", str(var / "demo"), "--secret", "bench", "--no-faults"]
        with (
            EmbeddedPostgres(var / "postgres") as server,
            running(python("-m", "cdn_pipeline.demo.origin", *command), var / "origin.log", ready_url=url),
        ):
            server.ensure_database(DEMO_DATABASE)
            engine = sa.create_engine(server.url(DEMO_DATABASE))
            app_database.create_tables(engine)
            app_database.populate(
                engine,
                Signer(url, "bench"),
                profiles=images // (POSTS_PER_PROFILE + 1) + 1,
                posts_per_profile=POSTS_PER_PROFILE,
                nasty_rows=False,
            )
            engine.dispose()
            yield World(var, server)


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median (lowest to highest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{form.format(middle)} ({form.format(low)} to {form.format(high)})"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipe, plain, runs = [], [], []
    with world(options.images) as place, ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        place.run_from_nothing()  # not counted: the origin makes its pictures
        originals = place.originals()
        for number in range(options.rounds):
            recipe.append(bare(pool, with_recipe, originals))
            runs.append(place.run_from_nothing())
            plain.append(bare(pool, with_plain_pillow, originals))
            rates = f"{runs[-1].rate:.1f}/s, recipe {recipe[-1]:.1f}/s, plain Pillow {plain[-1]:.1f}/s"
            print(f"round {number + 1} of {options.rounds}: end to end {rates}", file=sys.stderr)
        idle = place.run()
    report(runs, recipe, plain, idle, originals)


def report(
    runs: Sequence[EndToEnd],
    recipe: Sequence[float],
    plain: Sequence[float],
    idle: EndToEnd,
    originals: Sequence[bytes],
) -> None:
    """Prints the table."""
    images = runs[0].images
    rows = [
        ("images, mean bytes of an original", f"{images}, {sum(map(len, originals)) // len(originals):,}"),
        ("cores", f"{CORES}"),
        ("end to end, images/s", spread([run.rate for run in runs], "{:.1f}")),
        ("recipe's codec calls alone, images/s", spread(recipe, "{:.1f}")),
        ("plain Pillow's calls alone, images/s", spread(plain, "{:.1f}")),
        ("end to end ÷ recipe alone", spread([run.rate / alone for run, alone in zip(runs, recipe, strict=True)])),
        ("end to end ÷ plain Pillow", spread([run.rate / alone for run, alone in zip(runs, plain, strict=True)])),
        ("fixed cost of a run, s", spread([run.watched.seconds - run.seconds for run in runs], "{:.1f}")),
        ("a run with nothing to do, all 64 shards, s", f"{idle.watched.seconds:.1f}"),
        ("CPU ms per image: workers", spread([1000 * run.watched.workers_cpu / images for run in runs], "{:.1f}")),
        (
            "CPU ms per image: the run's process",
            spread([1000 * run.watched.run_cpu / images for run in runs], "{:.1f}"),
        ),
        ("peak memory, run and workers, MB", spread([run.watched.peaks["all"] for run in runs], "{:.0f}")),
    ]
    print("| what | median (lowest to highest) |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
