"""What the processes of a running system use, by what they are."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import psutil

_KINDS = {
    "postgres": "Postgres",
    "dagster._daemon": "Dagster's daemon",
    "dagster_webserver": "Dagster's webserver",
    "run_worker": "runs",
    "execute_run": "runs",
    "multiprocessing": "runs",
    "grpc": "code servers (sensor ticks among them)",
    "code-server": "code servers (sensor ticks among them)",
    "demo.origin": "the demo's origin",
    "cdn_pipeline.cli serve": "API and picture server",
    "dagster dev": "Dagster's supervisor",
    "cdn_pipeline.cli dev": "cdn-pipeline dev",
}


class Usage:
    """CPU and memory of some processes and of all below them, from the first look on."""

    def __init__(self, *roots: psutil.Process) -> None:
        self._roots = roots
        self._before = self._spent()
        self._last = dict(self._before)
        self.peaks: Counter[str] = Counter()
        """The most memory at a time, in MB, by kind: pages that processes share count once."""

    def look(self) -> None:
        """Notes CPU times; what a process used after the last look at it is not known once it has ended."""
        self._last.update(self._spent())

    def weigh(self) -> None:
        """Notes memory; costs some ms for each process."""
        now: Counter[str] = Counter()
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                memory = process.memory_full_info()
                now[_kind(process)] += getattr(memory, "pss", memory.rss) // 1_000_000
        self.peaks |= now

    @property
    def cpu_seconds(self) -> Counter[str]:
        """By kind, of processes that have ended meanwhile as well."""
        total: Counter[str] = Counter()
        for pid, (kind, spent) in self._last.items():
            total[kind] += spent - (self._before[pid][1] if pid in self._before else 0.0)  # type: ignore[assignment]
        return total

    def _spent(self) -> dict[int, tuple[str, float]]:
        spent = {}
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                spent[process.pid] = _kind(process), times.user + times.system
        return spent

    def _processes(self) -> Iterator[psutil.Process]:
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                yield from (root, *root.children(recursive=True))


def _kind(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    return next((kind for sign, kind in _KINDS.items() if sign in words), "others")
