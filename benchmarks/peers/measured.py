"""A run of either side as figures: ours and the peer's by turns, compared round by round."""

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.report import Figure
from benchmarks.throughput import World


@dataclass(frozen=True, slots=True)
class Measured:
    """One run over some images.

    `seconds` is without start-up, from the first image's start to the last one's end, `whole_seconds` with it.
    `cpu_seconds` is of all processes, databases and brokers among them, from start to end; the origin's is apart.
    """

    images: int
    seconds: float
    whole_seconds: float
    cpu_seconds: float
    origin_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Images per second without start-up."""
        return self.images / self.seconds

    @property
    def whole_rate(self) -> float:
        """Images per second with start-up."""
        return self.images / self.whole_seconds

    @property
    def cpu_ms(self) -> float:
        """CPU per image."""
        return 1000 * self.cpu_seconds / self.images

    @property
    def origin_cpu_ms(self) -> float:
        """The origin's CPU per image."""
        return 1000 * self.origin_cpu_seconds / self.images


@dataclass(frozen=True, slots=True)
class Round:
    """One run of each side, one after the other."""

    ours: Measured
    peer: Measured


Run = Callable[[], Measured]


def play(ours: Run, peer: Run, rounds: int) -> list[Round]:
    """Runs both by turns."""
    played = []
    for number in range(rounds):
        played.append(Round(ours(), peer()))
        rates = f"ours {played[-1].ours.rate:.1f} images/s, peer {played[-1].peer.rate:.1f}"
        print(f"round {number + 1} of {rounds}: {rates}", file=sys.stderr)
    return played


def our_run(place: World) -> Measured:
    """One run of our job over the world's shards, from an empty catalog and empty stores."""
    before = cpu_of_children()
    run = place.run_from_nothing()
    cpu = cpu_of_children() - before + run.postgres_cpu
    return Measured(run.images, run.seconds, run.watched.seconds, cpu, run.origin_cpu)


def cpu_of_children() -> float:
    """CPU seconds of this process's children that have ended, and of those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def speed(rounds: Sequence[Round], peer: str, *, at_least: float) -> list[Figure]:
    """Images per second of both, and the ratio with its goal, without start-up."""
    return [
        Figure("ours, images/s", tuple(each.ours.rate for each in rounds), decimals=1),
        Figure(f"{peer}, images/s", tuple(each.peer.rate for each in rounds), decimals=1),
        Figure(f"ours ÷ {peer}", tuple(each.ours.rate / each.peer.rate for each in rounds), at_least=at_least),
    ]


def start_up(rounds: Sequence[Round], peer: str) -> list[Figure]:
    """The ratio again with each side's start-up, and what that takes."""
    ratios = tuple(each.ours.whole_rate / each.peer.whole_rate for each in rounds)
    return [
        Figure(f"ours ÷ {peer}, both with start-up and end", ratios),
        Figure("start-up and end, ours", tuple(_outside(each.ours) for each in rounds), "s", decimals=1),
        Figure(f"start-up and end, {peer}", tuple(_outside(each.peer) for each in rounds), "s", decimals=1),
    ]


def cpu(rounds: Sequence[Round], peer: str, *, at_most: float | None = None) -> list[Figure]:
    """CPU per image of both, and their ratio."""
    ratios = tuple(each.ours.cpu_ms / each.peer.cpu_ms for each in rounds)
    return [
        Figure("CPU per image, ours", tuple(each.ours.cpu_ms for each in rounds), "ms", decimals=1),
        Figure(f"CPU per image, {peer}", tuple(each.peer.cpu_ms for each in rounds), "ms", decimals=1),
        Figure(f"CPU per image, ours ÷ {peer}", ratios, at_most=at_most),
    ]


def origin_cpu(rounds: Sequence[Round], peer: str) -> list[Figure]:
    """The origin's CPU per image, which is nobody's merit."""
    sides = {"ours": [each.ours for each in rounds], peer: [each.peer for each in rounds]}
    return [
        Figure(f"CPU of the origin per image, {side}", tuple(run.origin_cpu_ms for run in runs), "ms", decimals=1)
        for side, runs in sides.items()
    ]


def _outside(run: Measured) -> float:
    return run.whole_seconds - run.seconds
