"""Measures encoder settings and resamplers against the present recipe; under four minutes of one core.

    .venv/bin/python -m benchmarks.quality [--pictures 16] [--rounds 3]

Half of the photographs are from the corpus that CDN_PIPELINE_CORPUS names, if it is set, the others are the demo's. The
first start installs the tools. Writes two sections of docs/performance.md and docs/images/quality.png.
"""

import os
import subprocess
import sys

from benchmarks.quality.tools import installed_tools

# One thread for whatever is measured: what a worker of the pool has.
_ONE_THREAD = {"VIPS_CONCURRENCY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Runs the study in a process that finds its tools."""
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(installed_tools())}
    study = subprocess.run([sys.executable, "-m", "benchmarks.quality.study", *sys.argv[1:]], env=environment)
    sys.exit(study.returncode)


if __name__ == "__main__":
    main()
