"""Our whole job against sharp's transcoding alone.

sharp takes the originals from memory and gives bytes to memory: no download, no store, no catalog. It decodes as it
likes, with one input for both sizes (`clone()`). Ours is the job from first claim to last committed outcome.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import inf, log10
from os import environ
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from benchmarks.peers.installation import HERE, install_node_peer, require
from benchmarks.peers.measured import Measured, Round, cpu, our_run, play, speed
from benchmarks.report import Figure, Section
from benchmarks.throughput import CORES, World
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode

GOAL = 1.10
PICTURES_COMPARED = 12


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How sharp is told to use the cores; None leaves libuv's and libvips' own numbers."""

    words: str
    images_at_once: int
    libuv_threads: int | None
    libvips_threads: int | None


PARALLELISMS = (
    Parallelism(f"{CORES} images at once on as many libuv threads, one libvips thread each", CORES, CORES, 1),
    Parallelism(f"{CORES} images at once, libuv's and libvips' own numbers of threads", CORES, None, None),
    Parallelism(f"{2 * CORES} images at once, libuv's and libvips' own numbers of threads", 2 * CORES, None, None),
)


@dataclass(frozen=True, slots=True)
class Transcoded:
    """What sharp said of one run."""

    measured: Measured
    bytes: int
    versions: dict[str, str]

    @classmethod
    def read(cls, text: str) -> "Transcoded":
        """From what `sharp.mjs` prints."""
        said = json.loads(text)
        measured = Measured(said["images"], said["seconds"], said["seconds"], said["cpuSeconds"])
        return cls(measured, said["bytes"], said["versions"])


@dataclass(frozen=True, slots=True)
class Sharp:
    """sharp where it is installed, and its work."""

    home: Path
    node: str
    originals: Path
    outputs: Path

    def run(self, parallelism: Parallelism) -> Transcoded:
        """Transcodes every original."""
        options = {
            "originals": str(self.originals),
            "outputs": str(self.outputs),
            "kept": PICTURES_COMPARED,
            "sizes": WEBP_THUMBNAILS.longest_sides,
            "quality": WEBP_THUMBNAILS.quality,
            "effort": WEBP_THUMBNAILS.effort,
            "imagesAtOnce": parallelism.images_at_once,
            "libvipsThreads": parallelism.libvips_threads,
        }
        threads = {"UV_THREADPOOL_SIZE": str(parallelism.libuv_threads)} if parallelism.libuv_threads else {}
        command = [self.node, str(HERE / "sharp.mjs"), json.dumps(options)]
        ended = subprocess.run(
            command, cwd=self.home, env={**environ, **threads}, check=True, stdout=subprocess.PIPE, text=True
        )
        return Transcoded.read(ended.stdout)

    def fastest(self) -> Parallelism:
        """The best of the ways to use the cores, each tried once."""
        rates = {parallelism: self.run(parallelism).measured.rate for parallelism in PARALLELISMS}
        for parallelism, rate in rates.items():
            print(f"sharp with {parallelism.words}: {rate:.1f} images/s", file=sys.stderr)
        return max(rates, key=rates.__getitem__)


def install(folder: Path) -> Path:
    """Where sharp is."""
    require("node", debian_package="nodejs")
    return install_node_peer("sharp", folder)


def compare(place: World, home: Path, rounds: int, command: str) -> Section:
    """Measures both on the images of this world, which has run once."""
    work = place.var / "sharp"
    sharp = Sharp(home, require("node", debian_package="nodejs"), work / "originals", work / "outputs")
    for folder in (sharp.originals, sharp.outputs):
        folder.mkdir(parents=True)
    for number, data in enumerate(place.originals()):
        (sharp.originals / f"{number:06}").write_bytes(data)
    parallelism = sharp.fastest()
    last = sharp.run(parallelism)
    played = play(lambda: our_run(place), lambda: sharp.run(parallelism).measured, rounds)
    return Section(
        name="sharp",
        title="Against sharp",
        command=command,
        figures=_figures(played, sharp),
        notes=[
            f"{last.measured.images} images; sharp transcodes from memory to memory ({parallelism.words}, the fastest "
            "of three ways); ours downloads, keeps originals, stores, verifies and commits as well.",
            "PSNR is of the delivered renditions of both sizes against the lossless pixels of Pillow's full decode and "
            "Lanczos: what encoder and resampler lose together.",
        ],
        versions=last.versions,
    )


def _figures(rounds: Sequence[Round], sharp: Sharp) -> list[Figure]:
    names = sorted(file.name for file in sharp.originals.iterdir())[:PICTURES_COMPARED]
    originals = {name: (sharp.originals / name).read_bytes() for name in names}
    ours = [(data, each.data) for data in originals.values() for each in transcode(data, WEBP_THUMBNAILS).renditions]
    theirs = [(originals[name], data) for name, data in _outputs(sharp, names)]
    return [
        *speed(rounds, "sharp", at_least=GOAL),
        *cpu(rounds, "sharp"),
        *(
            figure
            for side, pairs in (("ours", ours), ("sharp", theirs))
            for figure in (
                Figure(f"PSNR, {side}", tuple(psnr(*pair) for pair in pairs), "dB", decimals=1),
                Figure(f"bytes of a rendition, {side}", tuple(len(data) for _, data in pairs), decimals=0),
            )
        ),
    ]


def _outputs(sharp: Sharp, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        for side in WEBP_THUMBNAILS.longest_sides:
            yield name, (sharp.outputs / f"{name}.{side}.webp").read_bytes()


def psnr(original: bytes, rendition: bytes) -> float:
    """Peak signal-to-noise ratio in dB of a rendition against Pillow's Lanczos of its original at the same size."""
    with Image.open(BytesIO(original)) as source, Image.open(BytesIO(rendition)) as made:
        wanted = source.convert("RGB").resize(made.size, Image.Resampling.LANCZOS)
        squares = ImageStat.Stat(ImageChops.difference(wanted, made.convert("RGB"))).sum2
    error = sum(squares) / (len(squares) * wanted.width * wanted.height)
    return 10 * log10(255**2 / error) if error else inf
