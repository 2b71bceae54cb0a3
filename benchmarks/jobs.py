"""Runs the Dagster job over a range of shards in a process of its own, and watches it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cdn_pipeline.collections import SHARDS

_LOOK_EVERY_SECONDS = 1.0  # 0.2 takes 2 % of two cores from what is measured


@dataclass(slots=True)
class Watched:
    """What a run cost: wall seconds, CPU seconds of its own threads by name and of its workers, peak memory in MB.

    Memory is the proportional set size: pages that processes share count once. `all` is the run, its workers and the
    Postgres servers that it talks to, together.
    """

    exit_status: int = 0
    seconds: float = 0.0
    threads_cpu: dict[str, float] = field(default_factory=dict)
    workers_cpu: float = 0.0
    peaks: dict[str, float] = field(default_factory=lambda: {"run": 0.0, "workers": 0.0, "all": 0.0})

    @property
    def run_cpu(self) -> float:
        """CPU seconds of the run's own process."""
        return sum(self.threads_cpu.values())


def run_job(
    var: Path,
    environment: Mapping[str, str] | None = None,
    *,
    definitions: str = "cdn_pipeline.definitions",
    job: str = "publish_images",
    first: str = SHARDS[0],
    last: str = SHARDS[-1],
    postgres: psutil.Process | None = None,
) -> Watched:
    """Runs the job with its state under `var`; its output goes to `job.log` there."""
    variables = {
        **os.environ,
        "CDN_PIPELINE_VAR_DIR": str(var),
        "DAGSTER_HOME": str(var),
        "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
        **(environment or {}),
    }
    (var / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    threads = var / "threads.json"
    threads.unlink(missing_ok=True)
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    arguments = ["job", "execute", "-m", definitions, "-j", job, "--tags", json.dumps(tags)]
    watched, started = Watched(), time.monotonic()
    with (var / "job.log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "benchmarks.threads", str(threads), *arguments],
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        workers: dict[int, float] = {}
        while process.poll() is None:
            _look(process, postgres, watched, workers)
            time.sleep(_LOOK_EVERY_SECONDS)
    watched.exit_status = process.returncode
    watched.seconds = time.monotonic() - started
    watched.workers_cpu = sum(workers.values())
    watched.threads_cpu = json.loads(threads.read_text())
    return watched


def _look(process: psutil.Popen, postgres: psutil.Process | None, watched: Watched, workers: dict[int, float]) -> None:
    try:
        children = [child for child in process.children() if "postgres" not in child.name()]
        servers = [postgres, *postgres.children()] if postgres else []
        own, theirs, server = (sum(map(_megabytes, each)) for each in ([process], children, servers))
        workers.update({child.pid: cpu_seconds(child) for child in children})
    except psutil.NoSuchProcess:
        return
    for name, value in (("run", own), ("workers", theirs), ("all", own + theirs + server)):
        watched.peaks[name] = max(watched.peaks[name], value)


def _megabytes(process: psutil.Process) -> float:
    memory = process.memory_full_info()
    return float(getattr(memory, "pss", memory.rss)) / 1e6


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of the process and of its children that have ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
