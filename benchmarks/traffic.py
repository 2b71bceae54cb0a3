"""Ten times the traffic that was planned for: 12,000 images an hour in, 24,500,000 requests a month out.

    .venv/bin/python -m benchmarks.traffic [--minutes 10]

Everything as it runs on one machine: embedded Postgres, folder stores, `cdn-pipeline serve`, Dagster with all sensors
and schedules on, the demo's origin (pictures made when first asked for, no faults). Profiles and posts are inserted at
a steady rate; meanwhile a client asks for `GET …/media` all the time at its peak, five times the monthly mean. Exit
status 1 when a request fails, or an image is not published five minutes after the last row.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import UUID

import psutil
import sqlalchemy as sa

from benchmarks.idle import Dagster, wait_until
from benchmarks.load import Load, measure
from benchmarks.processes import Usage
from cdn_pipeline.catalog.sessions import open_catalog, open_demo_database
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.settings import Settings, project_root

IMAGES_PER_SECOND = 12_000 / 3600
PEAK_FACTOR = 5  # of the hour that is busiest, against the mean of a month
REQUESTS_PER_SECOND = PEAK_FACTOR * 24_500_000 / (30 * 24 * 3600)

_FIRST_PROFILES = 60  # of which the client asks; each new post is of one of them, so that none has 13 unread ones
_POSTS_OF_NEW_PROFILE = 12
_POSTS_PER_PROFILE = 12  # as many posts of known profiles come for each new profile
_IMAGES_PER_POST = 1.24  # 12 in 100 are carousels, which have two further pictures on average
_WEIGH_EVERY, _SAMPLE_EVERY = 5, 10  # seconds
_LINES = 10  # of the queue's table
_DRAIN = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Sample:
    """The queue at one moment."""

    seconds: float
    open_jobs: int
    in_hand: int
    published: int


@dataclass
class World:
    """A running system, empty at first."""

    source: sa.Engine
    catalog: sa.Engine
    signer: Signer
    api_url: str
    dagster: Dagster
    roots: Sequence[psutil.Process]
    known: list[UUID] = field(default_factory=list)

    def begin(self) -> None:
        """Adds the first profiles and waits until their images are published."""
        app_database.create_tables(self.source)
        for seed in range(_FIRST_PROFILES):
            self.known.append(app_database.add_profile(self.source, self.signer, seed=seed, posts=1))
        wait_until(lambda: bool(self.dagster.ask("{ version }")), "Dagster answers", timedelta(minutes=2))
        self.dagster.switch_everything_on()
        wait_until(lambda: not self.unpublished(), "the first images are published", timedelta(minutes=10))

    def media_urls(self) -> list[str]:
        """What the client asks for."""
        return [f"{self.api_url}/api/v1/creators/ig/{profile_id}/media" for profile_id in self.known]

    def sample(self, seconds: float) -> Sample:
        """Looks at the queue."""
        with self.catalog.connect() as connection:
            return Sample(seconds, *connection.execute(_SAMPLE).one())

    def inserted(self) -> Mapping[str, datetime]:
        """When each row was inserted, by its id."""
        with self.source.connect() as connection:
            return {row.id: row.updated_at for row in connection.execute(_INSERTED)}

    def published(self) -> Sequence[tuple[str, datetime | None]]:
        """The row that each image is of, and when the image became visible."""
        with self.catalog.connect() as connection:
            return [(row.source_id, row.processing_completed_at) for row in connection.execute(_PUBLISHED)]

    def unpublished(self) -> int:
        """Images that are not visible, and rows of which no image is known."""
        images = self.published()
        unseen = self.inserted().keys() - {source_id for source_id, _ in images}
        return len(unseen) + sum(at is None for _, at in images)


_SAMPLE = sa.text("""
    SELECT count(*) FILTER (WHERE status IN ('queued', 'processing')), count(*) FILTER (WHERE status = 'processing'),
           (SELECT count(*) FROM cdn_image_assets WHERE processing_completed_at IS NOT NULL)
    FROM cdn_image_jobs
""")
_INSERTED = sa.text("SELECT id::text, updated_at FROM profiles UNION ALL SELECT id::text, updated_at FROM posts")
_PUBLISHED = sa.text("SELECT source_id, processing_completed_at FROM cdn_image_assets")


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Starts everything, with all its state in this folder."""
    var, home = folder / "var", folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((project_root() / "dagster.yaml").read_bytes())
    environment = {**os.environ, "CDN_PIPELINE_VAR_DIR": str(var), "DAGSTER_HOME": str(home)}
    settings = Settings(_env_file=None, cdn_pipeline_var_dir=var)  # type: ignore[call-arg]
    origin_url, api_url, dagster_url = (f"http://127.0.0.1:{free_port(0)}" for _ in range(3))

    def port(url: str) -> str:
        return url.rpartition(":")[2]

    origin = python("-m", "cdn_pipeline.demo.origin", "--port", port(origin_url), "--no-faults", "--secret", "traffic")
    serve = python("-m", "cdn_pipeline.cli", "serve", "--port", port(api_url))
    dagster = python("-m", "dagster", "dev", "-p", port(dagster_url), "-w", str(project_root() / "workspace.yaml"))
    with ExitStack() as stack:
        catalog = stack.enter_context(open_catalog(settings))
        source = stack.enter_context(open_demo_database(settings))
        commands = (
            ([*origin, "--state-dir", str(folder)], "origin", f"{origin_url}/_admin/clock"),
            (serve, "serve", f"{api_url}/livez"),
            (dagster, "dagster", None),
        )
        processes = [
            stack.enter_context(running(command, folder / f"{name}.log", ready_url=ready, environment=environment))
            for command, name, ready in commands
        ]
        postmaster = int(next(var.rglob("postmaster.pid")).read_text().split()[0])
        roots = [psutil.Process(pid) for pid in (postmaster, *(process.pid for process in processes))]
        yield World(source, catalog, Signer(origin_url, "traffic"), api_url, Dagster(dagster_url, home), roots)


def insert_rows(world: World, seconds: float) -> Iterator[float]:
    """Adds new profiles, and posts of known ones, at the rate of images; yields once a second how many have passed."""
    chance, images, started = random.Random(0), 0.0, time.monotonic()
    for number in count():
        while images > IMAGES_PER_SECOND * (elapsed := time.monotonic() - started):
            if elapsed >= seconds:
                return
            yield elapsed
            time.sleep(1)
        if number % (1 + _POSTS_PER_PROFILE) == 0:
            seed = _FIRST_PROFILES + number
            app_database.add_profile(world.source, world.signer, seed=seed, posts=_POSTS_OF_NEW_PROFILE)
            images += 1 + _POSTS_OF_NEW_PROFILE * _IMAGES_PER_POST
        else:
            app_database.add_post(world.source, world.signer, chance.choice(world.known))
            images += _IMAGES_PER_POST


def play(world: World, minutes: float) -> bool:
    """Lets rows and requests come for so long, prints what happened, and returns whether all went well."""
    seconds, began = minutes * 60, datetime.now(UTC)
    usage, samples = Usage(*world.roots), list[Sample]()
    with ThreadPoolExecutor(1) as client:
        asked = client.submit(measure, world.media_urls(), seconds, rate=REQUESTS_PER_SECOND)
        for elapsed in insert_rows(world, seconds):
            usage.look()
            if int(elapsed) % _WEIGH_EVERY == 0:
                usage.weigh()
            if elapsed >= _SAMPLE_EVERY * len(samples):
                samples.append(world.sample(elapsed))
        load = asked.result()
    spent = usage.cpu_seconds
    wait_until_published(world)
    left = world.unpublished()
    print_images(world, began, seconds, left)
    print_requests(load)
    print_usage(usage, spent, seconds)
    print_queue(samples)
    failed = load.statuses.total() - load.statuses[200]
    return not (left or failed)


def wait_until_published(world: World) -> None:
    """Gives what is on its way its time."""
    ends_at = time.monotonic() + _DRAIN.total_seconds()
    while world.unpublished() and time.monotonic() < ends_at:
        time.sleep(1)


def print_images(world: World, began: datetime, seconds: float, left: int) -> None:
    """What came in, and how long it took to become visible."""
    rows = {row: at for row, at in world.inserted().items() if at >= began}
    arrived = [(rows[row], at) for row, at in world.published() if row in rows]
    waits = sorted((at - inserted).total_seconds() for inserted, at in arrived if at)
    p50, p95 = (waits[int(share * (len(waits) - 1))] for share in (0.5, 0.95))
    print("| images in | |\n|---|---|")
    print(f"| rows inserted, images of them | {len(rows)}, {len(arrived)} |")
    print(f"| images an hour | {len(arrived) / seconds * 3600:,.0f} |")
    print(f"| published | {len(waits)} ({len(waits) / len(arrived):.2%}) |")
    print(f"| left behind {_DRAIN.total_seconds() / 60:.0f} minutes after the last row | {left} |")
    print(f"| from insert to visible, s: median, p95, longest | {p50:.0f}, {p95:.0f}, {waits[-1]:.0f} |")


def print_requests(load: Load) -> None:
    """What the client got."""
    failed = {status: number for status, number in load.statuses.items() if status != 200}
    p50, p95, p99 = (load.percentile(percent) for percent in (50, 95, 99))
    print("\n| `GET …/media` | |\n|---|---|")
    print(f"| requests, a second | {load.statuses.total():,}, {load.rate:.1f} (peak factor {PEAK_FACTOR}) |")
    print(f"| failed | {failed or 0} |")
    print(f"| ms: p50, p95, p99, longest | {p50:.1f}, {p95:.1f}, {p99:.1f}, {load.milliseconds[-1]:.0f} |")


def print_usage(usage: Usage, spent: Mapping[str, float], seconds: float) -> None:
    """CPU and memory by kind of process."""
    print("\n| processes | CPU, % of a core | most memory, MB |\n|---|---|---|")
    for kind, value in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {100 * value / seconds:.1f} | {usage.peaks[kind]} |")
    print(f"| **all** | **{100 * sum(spent.values()) / seconds:.1f}** | |")


def print_queue(samples: Sequence[Sample]) -> None:
    """The queue over time."""
    print("\n| s | open jobs | in hand | published |\n|---|---|---|---|")
    for sample in samples[:: max(1, len(samples) // _LINES)]:
        print(f"| {sample.seconds:.0f} | {sample.open_jobs} | {sample.in_hand} | {sample.published} |")
    depths = [sample.open_jobs for sample in samples]
    print(f"\nOpen jobs: {statistics.mean(depths):.0f} on average, {max(depths)} at most.")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-traffic-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # Postgres is served by another account where this one is root
        with running_world(folder) as world:
            world.begin()
            went_well = play(world, minutes)
    sys.exit(0 if went_well else 1)


if __name__ == "__main__":
    main()
