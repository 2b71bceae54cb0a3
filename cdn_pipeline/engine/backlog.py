"""Claimed jobs that wait for a place, best first; those whose host has no room just now hold up no others."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any, Protocol

import sqlalchemy as sa

from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.states import Stage

_NO_HOST = ""  # of jobs that download nothing


class Admission(Enum):
    """Whether a job may begin."""

    START = auto()
    WAIT = auto()  # for room at its host
    RELEASE = auto()  # its host is left alone for longer than a run waits


class Gate(Protocol):
    """What says which jobs may begin. It learns from the catalog whenever there is a connection at hand."""

    def admits(self, job: DueJob) -> Admission:
        """Whether the job may begin now; asked on the loop's thread."""

    def look(self, connection: sa.Connection) -> Any:
        """Reads what other runs know, on any thread."""

    def see(self, seen: Any) -> None:
        """Takes in what `look` has read, on the loop's thread."""

    @property
    def is_probing(self) -> bool:
        """Whether an image of this run asks a host if it is well again: what waits for the host may be due soon."""


class OpenGate:
    """Lets every job begin."""

    def admits(self, job: DueJob) -> Admission:
        """Yes."""
        return Admission.START

    def look(self, connection: sa.Connection) -> None:
        """Reads nothing."""

    def see(self, seen: None) -> None:
        """Learns nothing."""

    @property
    def is_probing(self) -> bool:
        """Never."""
        return False


class Backlog:
    """Claimed jobs by host, each host's in the stream's order."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._heaps: dict[str, list[tuple[tuple[int, float], int, DueJob]]] = {}
        self._by_shard: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._pushed = 0

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def __iter__(self) -> Iterator[DueJob]:
        """All jobs, in no particular order."""
        return (job for heap in self._heaps.values() for _, _, job in heap)

    def push(self, job: DueJob) -> None:
        """Adds a job."""
        self._pushed += 1
        host = _host(job)
        heapq.heappush(self._heaps.setdefault(host, []), (job.order, self._pushed, job))
        self._by_shard[job.shard][host] += 1

    def pop(self) -> DueJob | None:
        """Takes out the best job that may begin now; None if there is none."""
        for heap in sorted(self._heaps.values(), key=lambda heap: heap[0]):
            if self._gate.admits(heap[0][-1]) is Admission.START:
                return self._take(heap)
        return None

    def release(self) -> Sequence[DueJob]:
        """Takes out the jobs whose host is left alone for longer than a run waits."""
        shut = [heap for heap in self._heaps.values() if self._gate.admits(heap[0][-1]) is Admission.RELEASE]
        return [self._take(heap) for heap in shut for _ in range(len(heap))]

    def clear(self) -> Sequence[DueJob]:
        """Takes out all jobs."""
        return [self._take(heap) for heap in list(self._heaps.values()) for _ in range(len(heap))]

    def crowded_hosts(self) -> frozenset[str]:
        """The hosts whose jobs have to wait."""
        return frozenset(
            host for host, heap in self._heaps.items() if self._gate.admits(heap[0][-1]) is not Admission.START
        )

    def has_job_of(self, shard: str, *, beside: frozenset[str] = frozenset()) -> bool:
        """Whether a job of the shard is here that is not of one of the hosts `beside`."""
        return any(host not in beside for host, count in self._by_shard[shard].items() if count)

    def _take(self, heap: list[tuple[tuple[int, float], int, DueJob]]) -> DueJob:
        _, _, job = heapq.heappop(heap)
        host = _host(job)
        self._by_shard[job.shard][host] -= 1
        if not heap:
            del self._heaps[host]
        return job


def _host(job: DueJob) -> str:
    return job.host if job.stage is Stage.DOWNLOAD else _NO_HOST
