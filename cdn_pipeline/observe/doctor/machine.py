"""This machine: Python and codecs, cores and memory, room on the disks."""

import platform
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import PIL
import psutil
from PIL import features

from cdn_pipeline.engine.mirror import usable_cores
from cdn_pipeline.engine.transcoding import LARGE_MEMORY_BYTES, ORDINARY_MEMORY_BYTES
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning
from cdn_pipeline.observe.thresholds import judge_disk
from cdn_pipeline.settings import Settings

_PYTHON = (3, 11)
_PILLOW = (12, 3)  # many decoder CVEs before

# Measured, see engine/transcoding.py.
_RUN_BYTES = 180 << 20
_WORKER_BYTES = 45 << 20
_RUNS = 2  # that work at the same time as a rule: a regular one and a bulk one

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of the container that we are in


def look_at_python(_: Deployment) -> Finding:
    """Whether Python and Pillow are new enough, and can write our formats."""
    words = f"Python {platform.python_version()}, Pillow {PIL.__version__}"
    install = "Install what requirements/runtime.txt pins; the wheels of Pillow on PyPI have all codecs."
    if sys.version_info < _PYTHON:
        return failed(words, "Install Python 3.11 or newer, and the package into it.")
    if tuple(map(int, PIL.__version__.split(".")[:2])) < _PILLOW:
        return failed(f"{words} is too old for files from strangers", install)
    if not features.check("webp"):
        return failed(f"{words} without WebP", install)
    if not features.check("avif"):
        return warning(f"{words} with WebP, without AVIF: no rollout of an AVIF recipe", install)
    return ok(f"{words} with WebP and AVIF")


def look_at_machine(_: Deployment) -> Finding:
    """Whether memory is enough for a run's worker pool, and for the two runs that work at once as a rule."""
    cores, memory, run = usable_cores(), _memory(), memory_of_run(usable_cores())
    words = f"{cores} cores and {_gigabytes(memory)} of memory; a run takes up to {_gigabytes(run)}"
    if memory < run:
        return failed(words, "Give the machine more memory or the process fewer cores (taskset, a container's limit).")
    if memory < _RUNS * run:
        return warning(
            words, "Let one run work at a time: max_concurrent_runs in dagster.yaml; or give it more memory."
        )
    return ok(words)


def memory_of_run(cores: int) -> int:
    """Bytes that a run takes at most, when one worker has a large picture and all others have ordinary ones."""
    return _RUN_BYTES + cores * _WORKER_BYTES + (cores - 1) * ORDINARY_MEMORY_BYTES + LARGE_MEMORY_BYTES


def look_at_disks(deployment: Deployment) -> Finding:
    """Whether there is room where something of ours lies on this machine."""
    room = {folder: psutil.disk_usage(str(folder)) for folder in map(_there, _folders(deployment.settings))}
    if not room:
        return ok("nothing of ours lies on this machine's disks")
    folder, fullest = max(room.items(), key=lambda item: item[1].percent)
    judged = judge_disk(fullest.used / (fullest.used + fullest.free))
    words = f"{folder}: {judged.words}, {_gigabytes(fullest.free)} left"
    if judged.passed:
        return ok(words)
    cure = "Make room there; `cdn-pipeline clean-up` tells what nobody needs. Postgres stops when nothing is left."
    return failed(words, cure) if judged.is_error else warning(words, cure)


def _folders(settings: Settings) -> set[Path]:
    stores = [urlsplit(url) for url in (settings.objects_url, settings.originals_url)]
    folders = {Path(url2pathname(store.path)) for store in stores if store.scheme == "file"}
    return folders | ({settings.cdn_pipeline_var_dir} if settings.embedded_catalog else set())


def _there(folder: Path) -> Path:
    """The folder, or what it will be made in."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _memory() -> int:
    """Bytes of this machine, or of the container's limit."""
    total = psutil.virtual_memory().total
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
