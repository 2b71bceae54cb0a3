"""Our job against img2dataset: the same URLs, 512 px alone, WebP of quality 85 and method 4, into a folder.

img2dataset has no setting for the method; OpenCV leaves it at libwebp's default, 4. It keeps no original and has no
catalog; ours does both. Its clock is that of its own reports, one per shard.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from os import environ
from pathlib import Path

from benchmarks.jobs import cpu_seconds
from benchmarks.peers.installation import install_python_peer, package_versions
from benchmarks.peers.measured import Measured, cpu, cpu_of_children, origin_cpu, our_run, play, speed, start_up
from benchmarks.peers.only_512 import RECIPE, SIDE
from benchmarks.report import Section
from benchmarks.throughput import CORES, World

SPEED_GOAL, CPU_GOAL = 1.5, 1.0
THREAD_COUNTS = (8, 16, 32)
_AT_HOME = {  # no word to anybody but the origin
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
    "WANDB_ERROR_REPORTING": "false",
}


@dataclass(frozen=True, slots=True)
class Img2dataset:
    """img2dataset where it is installed, and its work."""

    programs: Path
    place: World
    urls: Path
    images: int

    def run(self, thread_count: int) -> Measured:
        """Downloads every URL into a folder from nothing."""
        output = self.place.var / "img2dataset" / "output"
        shutil.rmtree(output, ignore_errors=True)
        options = {
            "url_list": self.urls,
            "input_format": "txt",
            "output_folder": output,
            "output_format": "files",
            "image_size": SIDE,
            "resize_mode": "keep_ratio_largest",
            "resize_only_if_bigger": True,
            "encode_format": RECIPE.format,
            "encode_quality": RECIPE.quality,
            "processes_count": CORES,
            "thread_count": thread_count,
            "number_sample_per_shard": ceil(self.images / CORES),  # a shard is one process's
        }
        command = [str(self.programs / "img2dataset"), *(f"--{name}={value}" for name, value in options.items())]
        before, started = (cpu_of_children(), cpu_seconds(self.place.origin)), time.monotonic()
        with (self.place.var / "img2dataset.log").open("wb") as log:
            subprocess.run(command, env={**environ, **_AT_HOME}, check=True, stdout=log, stderr=subprocess.STDOUT)
        whole = time.monotonic() - started
        after = cpu_of_children(), cpu_seconds(self.place.origin)
        successes, seconds = read_reports(report.read_text() for report in output.glob("*_stats.json"))
        if successes != self.images:
            sys.exit(f"img2dataset made {successes} of {self.images} images, see {output}")
        return Measured(successes, seconds, whole, after[0] - before[0], after[1] - before[1])

    def best_thread_count(self) -> int:
        """The fastest of those worth trying, each tried once."""
        rates = {threads: self.run(threads).rate for threads in THREAD_COUNTS}
        for threads, rate in rates.items():
            print(f"img2dataset with {threads} threads: {rate:.1f} images/s", file=sys.stderr)
        return max(rates, key=rates.__getitem__)


def read_reports(reports: Iterable[str]) -> tuple[int, float]:
    """Images made, and the seconds from the start of the first shard to the end of the last, by img2dataset's word."""
    shards = [json.loads(report) for report in reports]
    seconds = max(shard["end_time"] for shard in shards) - min(shard["start_time"] for shard in shards)
    return sum(shard["successes"] for shard in shards), seconds


def install(folder: Path) -> Path:
    """Where its programs are."""
    return install_python_peer("img2dataset", folder)


def compare(place: World, home: Path, rounds: int, command: str) -> Section:
    """Measures both on the images of this world, which has run once."""
    urls = place.downloaded_urls()
    work = place.var / "img2dataset"
    work.mkdir()
    (work / "urls.txt").write_text("".join(f"{url}\n" for url in urls))
    peer = Img2dataset(home, place, work / "urls.txt", len(urls))
    threads = peer.best_thread_count()
    ours = replace(place, definitions="benchmarks.peers.only_512")
    played = play(lambda: our_run(ours), lambda: peer.run(threads), rounds)
    return Section(
        name="img2dataset",
        title="Against img2dataset",
        command=command,
        figures=[
            *speed(played, "img2dataset", at_least=SPEED_GOAL),
            *start_up(played, "img2dataset"),
            *cpu(played, "img2dataset", at_most=CPU_GOAL),
            *origin_cpu(played, "img2dataset"),
        ],
        notes=[
            f"{len(urls)} URLs; {CORES} processes of {threads} threads (the fastest of "
            f"{', '.join(map(str, THREAD_COUNTS))}); its time without start-up is from the start of its first shard "
            "to the end of its last, by its own reports.",
            "img2dataset resizes with OpenCV's area filter, ours with the recipe's; ours keeps the originals as well, "
            "and a catalog. CPU includes start-up on both sides, and Postgres on ours.",
        ],
        versions=package_versions(home, ("img2dataset", "opencv-python-headless", "numpy")),
    )
