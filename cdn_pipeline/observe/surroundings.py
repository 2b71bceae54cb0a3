"""The process that measures, and the disks it depends on."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from cdn_pipeline.observe.vitals import Disk, Process
from cdn_pipeline.settings import Settings


def folder_of(url: str) -> Path | None:
    """The folder of a `file://` store."""
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def fullest_disk(settings: Settings) -> Disk | None:
    """Of the disks of local stores and of the embedded catalog; None if there are none."""
    return max(_disks(_local_folders(settings)), key=lambda disk: disk.used_share, default=None)


def _local_folders(settings: Settings) -> Iterator[Path]:
    yield from filter(None, (folder_of(settings.objects_url), folder_of(settings.originals_url)))
    if settings.embedded_catalog:
        yield settings.cdn_pipeline_var_dir


def _disks(folders: Iterable[Path]) -> Iterable[Disk]:
    """One for each device, named by the first of its folders. A folder that is not there yet has none."""
    disks: dict[int, Disk] = {}
    for folder in folders:
        with suppress(OSError):
            usage = psutil.disk_usage(str(folder))
            disks.setdefault(folder.stat().st_dev, Disk(str(folder), usage.used + usage.free, usage.free))
    return disks.values()


def this_process() -> Process:
    """The process that asks."""
    process = psutil.Process()
    with process.oneshot():
        started_at = datetime.fromtimestamp(process.create_time(), UTC)
        times = process.cpu_times()
        return Process(
            started_at=started_at,
            uptime=datetime.now(UTC) - started_at,
            resident_bytes=process.memory_info().rss,
            cpu_seconds=times.user + times.system,
            threads=process.num_threads(),
            load=os.getloadavg()[0],
        )
