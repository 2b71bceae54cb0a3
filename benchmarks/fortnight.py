"""A fortnight of the pipeline in a quarter of an hour: nothing lost, every hour of the statistics exact.

    .venv/bin/python -m benchmarks.fortnight [--days 14] [--profiles 15] [--seed 1]

The fortnight ends now, so that Dagster's hours exist. Progress goes to standard error, the table to standard output.
Exit status 1 if an image was lost, or an hour's statistics are missing or wrong, or a run broke.
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

from benchmarks.simulation.fortnight import Plan, play
from cdn_pipeline.definitions import build_defs


def main() -> None:
    """Plays and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--profiles", type=int, default=15, help="at first; two or three come every day")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ago = timedelta(days=options.days, hours=1)
    start = (datetime.now(UTC) - ago).replace(minute=0, second=0, microsecond=0)
    plan = Plan(start, days=options.days, profiles_at_first=options.profiles, seed=options.seed)
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s, {words}", file=sys.stderr, flush=True)

    with (
        tempfile.TemporaryDirectory(prefix="cdn-pipeline-fortnight-") as name,
        time_machine.travel(start) as traveller,
    ):
        folder = Path(name).resolve()
        folder.chmod(0o755)  # the account that serves root enters it
        result = play(plan, folder, build_definitions=build_defs, travel=traveller.move_to, say=say)
    print(*result.table(), sep="\n")
    print(f"\nplayed in {time.monotonic() - began:.0f} s")
    sys.exit(not result.holds)


if __name__ == "__main__":
    main()
