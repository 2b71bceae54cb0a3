"""Where the time goes: images per second with all stages, and without download, transcode or store.

    .venv/bin/python -m benchmarks.stages [--images 400 --rounds 3]

What `cdn-pipeline bench` does for a deployment, on photographs of 1080 px from the demo's origin (a process of its own,
pictures made beforehand), with folder stores. Left out is: the download, its bytes come from memory; the transcoding,
its results come from memory; the stores, which are in memory then.
"""

import argparse
from collections import defaultdict

from benchmarks.report import Figure, Section, keep
from benchmarks.throughput import world
from cdn_pipeline.observe.bottleneck import Pass, measure_stages, verdict
from cdn_pipeline.settings import Settings

SHARDS = 8


def measure(images: int, rounds: int) -> list[list[Pass]]:
    """The passes of every round, the one with all stages first; each round has all images of the same world."""
    with world(images, SHARDS) as place:
        settings = Settings(_env_file=None, cdn_pipeline_var_dir=place.var)  # type: ignore[call-arg]
        everything = 2 * images  # worlds are a little larger or smaller than asked for
        next(measure_stages(settings, everything))  # not counted: the origin makes its pictures
        return [list(measure_stages(settings, everything)) for _ in range(rounds)]


def section(rounds: list[list[Pass]], command: str) -> Section:
    """What was measured, with the verdict on the medians."""
    rates: defaultdict[str, list[float]] = defaultdict(list)
    gains: defaultdict[str, list[float]] = defaultdict(list)
    for whole, *others in rounds:
        rates["all stages"].append(whole.rate)
        for each in others:
            rates[f"without {each.without}"].append(each.rate)
            gains[f"without {each.without} ÷ all stages"].append(each.rate / whole.rate)
    return Section(
        name="stages",
        title="Without a stage",
        command=command,
        figures=[
            *(Figure(name, tuple(values), "images/s", decimals=1) for name, values in rates.items()),
            *(Figure(name, tuple(values)) for name, values in gains.items()),
        ],
        notes=[verdict(_middle(rounds)), "The same for your own images and stores: `cdn-pipeline bench`."],
    )


def _middle(rounds: list[list[Pass]]) -> list[Pass]:
    """Of each kind of pass the one with the median rate (the lower one of two)."""
    return [sorted(passes, key=lambda each: each.rate)[(len(passes) - 1) // 2] for passes in zip(*rounds, strict=True)]


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    command = f"python -m benchmarks.stages --images {options.images} --rounds {options.rounds}"
    keep(section(measure(options.images, options.rounds), command))


if __name__ == "__main__":
    main()
