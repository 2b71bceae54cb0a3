"""Runs Dagster's command line and writes the CPU seconds of its threads, by kind, into a file:

python -m benchmarks.threads FILE job execute …
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil

_LOOK_EVERY_SECONDS = 1.0

START = "Dagster: start, events, metadata"

# Thread names, as the code gives them, and what such threads do.
_KINDS = {
    "mirror-stream": "event loop: downloads, hand-over",
    "catalog": "catalog: claims and outcomes",
    "store": "folder store: put and read back",
    "worker-pool": "worker pool: hand-over",
    "Thread-": "worker pool: hand-over",
    "MainThread": START,
    "watcher": "this measurement",
}


class Watcher(threading.Thread):
    """Notes the CPU time of every thread of this process as long as it lives."""

    def __init__(self) -> None:
        super().__init__(name="watcher", daemon=True)
        self._seconds: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        """Looks again and again until the process ends."""
        while True:
            self.look()
            time.sleep(_LOOK_EVERY_SECONDS)

    def look(self) -> None:
        """Notes the times of the Python threads that there are."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        for thread in psutil.Process().threads():
            if thread.id in names:
                self._seconds[thread.id] = _kind(names[thread.id]), thread.user_time + thread.system_time

    def by_kind(self) -> dict[str, float]:
        """CPU seconds by kind of thread; what no Python thread used is the libraries' own."""
        total: dict[str, float] = {}
        for kind, seconds in self._seconds.values():
            total[kind] = total.get(kind, 0.0) + seconds
        return {**total, "libraries' own threads": time.process_time() - sum(total.values())}


def _kind(name: str) -> str:
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), name)


def main() -> None:
    """Runs Dagster with the arguments after the file's name."""
    from dagster._cli import main as dagster

    watcher, file = Watcher(), Path(sys.argv.pop(1))
    watcher.start()
    try:
        dagster()  # type: ignore[no-untyped-call]
    finally:
        watcher.look()
        file.write_text(json.dumps(watcher.by_kind()))


if __name__ == "__main__":
    main()
