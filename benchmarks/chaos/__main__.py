"""Strikes a small world with one disaster after another, and says after each whether everything came back.

    make chaos        (or: .venv/bin/python -m benchmarks.chaos --seed 1 --only Postgres)

Runs are `dagster job execute` in processes of their own; Postgres, the S3 server (moto) and the origin are real, on
loopback. After each disaster all faults end, one more run works, and then `audit` judges. The seed decides instants and
shares. Exit status 1 unless all were survived.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.disasters import DISASTERS, Disaster, Impossible
from benchmarks.chaos.place import Place, opened_place
from benchmarks.chaos.trial import survives

_MOST_COMPLAINTS = 5


def main() -> None:
    """Strikes and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="disasters with one of these words in their names")
    parser.add_argument("--logs", type=Path, help="a folder that gets what the runs said")
    options = parser.parse_args()
    chosen = [each for each in DISASTERS if any(word in each.name for word in options.only)]
    with opened_place() as place:
        survived, tried = strike_all(place, chosen, options.seed)
        if options.logs:
            shutil.copytree(place.folder, options.logs, ignore=_all_but_logs, dirs_exist_ok=True)
    print(f"survived {survived} of {tried}")
    sys.exit(survived != tried)


def _all_but_logs(folder: str, names: Sequence[str]) -> set[str]:
    return {name for name in names if not name.startswith(("chaos", "run"))}


def strike_all(place: Place, disasters: Sequence[Disaster], seed: int) -> tuple[int, int]:
    """Prints a line for each; returns how many were survived, of how many that were tried."""
    survived = tried = 0
    for number, disaster in enumerate(disasters):
        began = time.monotonic()
        try:
            seen, wrong = survives(place, disaster, number, seed)
        except Impossible as reason:
            print(f"{disaster.name:40} not tried: {reason}", flush=True)
            continue
        tried, survived = tried + 1, survived + (not wrong)
        verdict = "NOT survived" if wrong else "survived"
        print(f"{disaster.name:40} {verdict} ({time.monotonic() - began:.0f} s): {seen}", flush=True)
        for complaint in wrong[:_MOST_COMPLAINTS]:
            print(f"    {complaint}", flush=True)
    return survived, tried


if __name__ == "__main__":
    main()
