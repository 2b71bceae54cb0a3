"""Runs benchmarks one after the other, each in a process of its own, and writes docs/performance.md.

    make bench                                        (all of them: about two hours; nothing else should run meanwhile)
    .venv/bin/python -m benchmarks codec overhead     (some of them)

What fails is told at the end, and keeps what was measured before.
"""

import argparse
import subprocess
import sys

BENCHMARKS = {
    "codec": ["throughput"],
    "sharp": ["peers", "sharp"],
    "img2dataset": ["peers", "img2dataset"],
    "celery": ["peers", "celery"],
    "quiet-night": ["quiet_night"],
    "growth": ["growth"],
    "memory": ["memory"],
    "overhead": ["overhead"],
    "network-bound": ["network_bound"],
    "stages": ["stages"],
    "quality": ["quality"],
}


def main() -> None:
    """Runs them, then the generator of the docs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all if none is given")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: there are {', '.join(BENCHMARKS)}")
    failed = []
    for number, name in enumerate(names, 1):
        print(f"[{number} of {len(names)}] {name}", file=sys.stderr, flush=True)
        module, *arguments = BENCHMARKS[name]
        if subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *arguments], check=False).returncode:
            failed.append(name)
    subprocess.run([sys.executable, "docs/generate.py"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they measured before is kept")


if __name__ == "__main__":
    main()
