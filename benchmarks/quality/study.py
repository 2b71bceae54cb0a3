"""The study itself; `python -m benchmarks.quality` starts it with its tools."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from benchmarks.quality import encoding, perceptual, resampling
from benchmarks.quality.encoders import PRESENT, VIPS
from benchmarks.quality.encoding import QUALITY, Rendition
from benchmarks.quality.pictures import Picture, hard_cases, photographs
from benchmarks.quality.plot import draw
from benchmarks.report import Section, keep
from cdn_pipeline.media.allocator import keep_freed_memory

_PLOT = Path(__file__).parents[2] / "docs" / "images" / "quality.png"
_TOOLS = ("pyvips-binary", "ssimulacra2", "scikit-image")


def main() -> None:
    """Measures, prints, and keeps sections and plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality")
    parser.add_argument("--pictures", type=int, default=16, help="photographs")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring CPU time")
    parser.add_argument("--seed", type=int, default=1, help="decides which photographs")
    options = parser.parse_args()
    command = f".venv/bin/python -m benchmarks.quality --pictures {options.pictures} --rounds {options.rounds}"
    keep_freed_memory()  # as in the workers
    pictures = photographs(options.pictures, options.seed)
    keep(_resamplers(pictures, options.rounds, command))
    renditions = encoding.drawn(pictures)
    keep(_encoders(pictures, renditions, options.rounds, options.seed, command))
    draw(renditions, QUALITY, _PLOT)


def _resamplers(pictures: Sequence[Picture], rounds: int, command: str) -> Section:
    return Section(
        name="resamplers",
        title="Resamplers: libvips' Lanczos against Pillow's",
        command=command,
        figures=[*resampling.cpu_figures(rounds), *resampling.psnr_figures(chain(pictures, hard_cases()))],
        notes=[
            "CPU of making both sizes of decoded photographs in one thread, with the hand-over of the pixels. PSNR is "
            "against Pillow's rendition; of a picture with alpha, the lowest of its alpha and of both on black and on "
            "white. 99 means no difference.",
        ],
        versions=_versions(),
    )


def _encoders(
    pictures: Sequence[Picture], renditions: Sequence[Rendition], rounds: int, seed: int, command: str
) -> Section:
    alike = sum(PRESENT.encode(each.pixels, QUALITY) == VIPS.encode(each.pixels, QUALITY) for each in renditions)
    return Section(
        name="quality",
        title=f"Encoder settings, each ÷ {PRESENT.name}, quality {QUALITY}",
        command=command,
        figures=[
            *encoding.cpu_figures(pictures, renditions, rounds, seed),
            *encoding.bytes_figures(renditions),
            *encoding.alpha_figures(rounds),
            *perceptual.ideal_figures(renditions),
            *perceptual.search_figures(renditions),
        ],
        notes=[
            f"{len(pictures)} photographs in two sizes, scored against the pixels that were encoded. CPU is of one "
            "thread, at the setting that gives the median rendition the same SSIMULACRA2; the whole image is decoding, "
            "resizing and encoding. Bytes are read off each rendition's own curve: the spread is that of the pictures.",
            "Sharp YUV is libvips', Pillow has none; its CPU is told against libvips' own plain encoding. "
            f"libvips and Pillow gave the same bytes for {alike} of {len(renditions)} renditions.",
            "![Bytes against quality](images/quality.png)",
        ],
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {tool: version(tool) for tool in _TOOLS}


if __name__ == "__main__":
    main()
