"""What starting costs: importing the definitions against importing Dagster alone, and the other things that start.

    .venv/bin/python -m benchmarks.overhead [--rounds 15]

Fresh processes, interleaved, one after the other, in an empty folder: each round starts all of them once. Importing the
definitions includes importing Dagster; compiled files are there. Start-up of the interpreter is part of every time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from benchmarks.report import Figure, Section, keep

AT_MOST = 1.3  # of importing Dagster alone

PROGRAMS: Mapping[str, Sequence[str]] = {
    "import dagster": ("-c", "import dagster"),
    "import cdn_pipeline.definitions": ("-c", "import cdn_pipeline.definitions"),
    "what a pool worker imports": ("-c", "import cdn_pipeline.engine.worker, cdn_pipeline.media.transcode"),
    "cdn-pipeline --help": ("-m", "cdn_pipeline.cli", "--help"),
    "the interpreter alone": ("-c", ""),
}


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of every program in every round; a round more comes first, which compiles what is not compiled."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-overhead-") as folder:
        for _ in range(rounds + 1):
            for name, arguments in PROGRAMS.items():
                started = time.perf_counter()
                subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - started)
    return {name: values[1:] for name, values in seconds.items()}


def section(seconds: Mapping[str, Sequence[float]], command: str) -> Section:
    """Times, and the ratio round by round."""
    ratios = zip(seconds["import cdn_pipeline.definitions"], seconds["import dagster"], strict=True)
    return Section(
        name="overhead",
        title="Start-up",
        command=command,
        figures=[
            Figure("definitions ÷ Dagster alone", tuple(ours / theirs for ours, theirs in ratios), at_most=AT_MOST),
            *(Figure(name, tuple(1000 * each for each in values), "ms", 0) for name, values in seconds.items()),
        ],
    )


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    keep(section(measure(rounds), f"python -m benchmarks.overhead --rounds {rounds}"))


if __name__ == "__main__":
    main()
