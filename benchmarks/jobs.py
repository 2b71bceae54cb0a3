"""Runs the Dagster job over all shards in a process of its own, and watches it."""

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

ALL_SHARDS = json.dumps(
    {"dagster/asset_partition_range_start": SHARDS[0], "dagster/asset_partition_range_end": SHARDS[-1]}
)


@dataclass(slots=True)
class Watched:
    """What a run cost: wall seconds, CPU seconds and peak RSS in MB, of the run's own process and of its workers."""

    exit_status: int = 0
    seconds: float = 0.0
    run_cpu: float = 0.0
    workers_cpu: float = 0.0
    peaks: dict[str, float] = field(default_factory=lambda: {"run": 0.0, "workers": 0.0, "all": 0.0})


def run_job(var: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Runs `publish_images` with its state under `var`; its output goes to `job.log` there."""
    variables = {
        **os.environ,
        "CDN_PIPELINE_VAR_DIR": str(var),
        "DAGSTER_HOME": str(var),
        "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
        **(environment or {}),
    }
    (var / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    command = ["-m", "dagster", "job", "execute", "-m", "cdn_pipeline.definitions", "-j", "publish_images"]
    watched, started = Watched(), time.monotonic()
    with (var / "job.log").open("wb") as log:
        process = psutil.Popen(
            [sys.executable, *command, "--tags", ALL_SHARDS], env=variables, stdout=log, stderr=subprocess.STDOUT
        )
        workers: dict[int, float] = {}
        while process.poll() is None:
            _look(process, watched, workers)
            time.sleep(0.05)
    watched.exit_status = process.returncode
    watched.seconds = time.monotonic() - started
    watched.workers_cpu = sum(workers.values())
    return watched


def _look(process: psutil.Popen, watched: Watched, workers: dict[int, float]) -> None:
    try:
        own = process.memory_info().rss / 1e6
        watched.run_cpu = _cpu(process)
        memory = 0.0
        for child in process.children():
            if "postgres" not in child.name():
                memory += child.memory_info().rss / 1e6
                workers[child.pid] = _cpu(child)
    except psutil.NoSuchProcess:
        return
    for name, value in (("run", own), ("workers", memory), ("all", own + memory)):
        watched.peaks[name] = max(watched.peaks[name], value)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
