"""A quiet night: every URL was signed again and no picture changed. What it costs to see that, and to do nothing.

    .venv/bin/python -m benchmarks.quiet_night [--images 156780] [--rounds 1]

The project's nightly job over all shards in one run: first with empty tables, which is the fixed cost; then four times
a round, with rows that have not changed since the last night, with every URL signed again, the same with a picture in a
hundred replaced, and the same with those under another name. CPU is that of the run, its workers and Postgres, which
holds both databases.

What it would take to download and hash every picture is extrapolated twice: from the pictures that got another name,
which the pipeline downloads, hashes and finds unchanged; and from a sample that `fetch` alone downloads in the same
round from the same origin, without a job, a row or a byte written. Both over HTTP, so without TLS.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network
from multiprocessing import get_context
from pathlib import Path

from benchmarks.quiet_world import IMAGES_PER_PROFILE, Night, World, world
from benchmarks.report import Figure, Section, keep
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.fetch.client import Downloader

_DOWNLOADS_AT_ONCE = 16


def download_cpu(urls: Sequence[str]) -> float:
    """CPU seconds of downloading and hashing one picture, by `fetch` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_download_all, urls[:_DOWNLOADS_AT_ONCE]).result()  # not counted: imports
        return process.submit(_download_all, urls).result() / len(urls)


def _download_all(urls: Sequence[str]) -> float:
    """CPU seconds that it took this process."""
    before = time.process_time()
    asyncio.run(_hash_all(urls))
    return time.process_time() - before


async def _hash_all(urls: Sequence[str]) -> None:
    following = iter(urls)

    async def work(downloader: Downloader) -> None:
        for url in following:
            hashlib.sha256((await downloader.download(url)).data).hexdigest()

    async with Downloader(allowed_networks=(ip_network("127.0.0.0/8"),)) as downloader, asyncio.TaskGroup() as workers:
        for _ in range(_DOWNLOADS_AT_ONCE):
            workers.create_task(work(downloader))


@dataclass(frozen=True, slots=True)
class Round:
    """What one round measured."""

    idle: Night
    quiet: Night
    busier: Night  # one picture in a hundred was replaced
    renamed: Night  # those have got another name
    download_cpu: float  # seconds per image, by `fetch` alone

    @property
    def unchanged_cpu(self) -> float:
        """Seconds per image that the pipeline downloads, hashes, and finds that it has it."""
        return (self.renamed.other_cpu - self.quiet.other_cpu) / self.renamed.jobs

    def require_what_was_meant(self, images: int) -> None:
        """Exits if a night did something else than it was to do."""
        idle, quiet, busier, renamed = self.idle, self.quiet, self.busier, self.renamed
        if (idle.fresh, idle.jobs, idle.downloads) != (0, 0, 0):
            sys.exit(f"nothing had changed, and this was done: {idle}")
        if (quiet.fresh, quiet.jobs, quiet.downloads) != (images, 0, 0):
            sys.exit(f"all of {images} URLs were signed again, and this was done: {quiet}")
        if (busier.fresh, busier.jobs) != (images, busier.downloads) or not busier.jobs:
            sys.exit(f"of {images} pictures one in a hundred was replaced, and this was done: {busier}")
        if (renamed.jobs, renamed.encoded, renamed.downloads) != (busier.jobs, 0, busier.jobs):
            sys.exit(f"{busier.jobs} pictures got another name, and this was done: {renamed}")


def measure(place: World, images: int, sample: int) -> Round:
    """One round."""
    idle = place.night()
    place.sign_again()
    quiet = place.night()
    place.sign_again(replaced_percent=1)
    busier = place.night()
    place.sign_again(renamed_percent=1)
    renamed = place.night()
    measured = Round(idle, quiet, busier, renamed, download_cpu(place.picture_urls(sample)))
    measured.require_what_was_meant(images)
    return measured


def section(images: int, one_shard: Night, no_rows: Night, rounds: Sequence[Round], least_cpu: float) -> Section:
    """The figures. `one_shard` and `no_rows` are runs with nothing to look at: the fixed cost, and with all shards."""

    def of_all(value: Callable[[Round], float]) -> tuple[float, ...]:
        return tuple(map(value, rounds))

    def per_image(value: Callable[[Round], float]) -> tuple[float, ...]:
        return of_all(lambda each: 1000 * value(each) / images)

    per_shard = (no_rows.cpu - one_shard.cpu) / (len(SHARDS) - 1)
    return Section(
        name="quiet-night",
        title="A quiet night",
        command=f"python -m benchmarks.quiet_night --images {images} --rounds {len(rounds)}",
        figures=[
            Figure("published images, every URL signed again", (images,), decimals=0),
            Figure("downloads", of_all(lambda each: each.quiet.downloads), decimals=0, at_most=0),
            Figure(
                "CPU of downloading and hashing all of them by the pipeline ÷ CPU of the night",
                of_all(lambda each: each.unchanged_cpu * images / each.quiet.cpu),
                decimals=1,
                at_least=100,
            ),
            Figure(
                "the same without the fixed cost of a run",
                of_all(lambda each: each.unchanged_cpu * images / (each.quiet.cpu - no_rows.cpu)),
                decimals=1,
            ),
            Figure(
                "CPU of nothing but bytes and hashes ÷ CPU of the night",
                of_all(lambda each: each.download_cpu * images / each.quiet.cpu),
                decimals=1,
                at_least=100,
            ),
            Figure(
                "downloading and hashing by the pipeline",
                of_all(lambda each: 1000 * each.unchanged_cpu),
                "ms CPU an image",
            ),
            Figure(
                "downloading and hashing, nothing else",
                of_all(lambda each: 1000 * each.download_cpu),
                "ms CPU an image",
            ),
            Figure("the night", of_all(lambda each: each.quiet.seconds), "s", decimals=1),
            Figure("the night", of_all(lambda each: each.quiet.cpu), "s CPU", decimals=1),
            Figure(
                "the night, fixed cost apart",
                per_image(lambda each: each.quiet.cpu - no_rows.cpu),
                "ms CPU an image",
                decimals=3,
            ),
            Figure(
                "of which the least: one statement that writes as many URLs",
                (1000 * least_cpu / images,),
                "ms CPU an image",
                decimals=3,
            ),
            Figure(
                "observing with 1 % of the pictures replaced ÷ observing without",
                of_all(lambda each: each.busier.observing_cpu / each.quiet.observing_cpu),
                decimals=3,
                at_most=1.01,
            ),
            Figure(
                "processing of the replaced ones",
                of_all(lambda each: 1000 * (each.busier.other_cpu - each.quiet.other_cpu) / each.busier.jobs),
                "ms CPU an image",
                decimals=0,
            ),
            Figure("an idle run over all shards", of_all(lambda each: each.idle.seconds), "s", decimals=1),
            Figure("an idle run over all shards", of_all(lambda each: each.idle.cpu), "s CPU", decimals=1),
            Figure("of which fixed: a run of one shard without rows", (one_shard.cpu,), "s CPU", decimals=1),
            Figure("each further shard without rows", (1000 * per_shard,), "ms CPU", decimals=0),
            Figure("its rows", per_image(lambda each: each.idle.cpu - no_rows.cpu), "ms CPU an image", decimals=3),
        ],
    )


def main() -> None:
    """Measures and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=156_780, help="a multiple of 13")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sample", type=int, default=2_000, help="pictures to download and hash in each round")
    options = parser.parse_args()
    images = options.images // IMAGES_PER_PROFILE * IMAGES_PER_PROFILE
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-quiet-night-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with world(folder) as (place, origin_url):
            empty = place.night(SHARDS[0]), place.night()
            print(f"without rows: {empty}", file=sys.stderr)
            place.fill(images, origin_url)
            rounds = []
            for number in range(options.rounds):
                rounds.append(measure(place, images, options.sample))
                print(f"round {number + 1} of {options.rounds}: {rounds[-1]}", file=sys.stderr)
            least_cpu = place.least_cpu()
    keep(section(images, *empty, rounds, least_cpu))


if __name__ == "__main__":
    main()
