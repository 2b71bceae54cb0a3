"""A client that asks for URLs as fast as it gets answers, or at a fixed rate: a process of its own."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context

import aiohttp


@dataclass(frozen=True, slots=True)
class Load:
    """What came back within `seconds`: how often each status (0: no answer), and how long it took, sorted, in ms."""

    seconds: float
    statuses: Counter[int]
    milliseconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Answers with status 200 a second."""
        return self.statuses[200] / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds that so many percent of the answers took at most."""
        return self.milliseconds[min(len(self.milliseconds) - 1, int(len(self.milliseconds) * percent / 100))]


def measure(urls: Sequence[str], seconds: float, *, at_once: int = 16, rate: float | None = None) -> Load:
    """Asks for these URLs, over and over, for so long.

    Without a rate `at_once` requests are always under way. With one, requests begin at their times whether earlier ones
    are answered or not, and how long they took is counted from there.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client:
        return client.submit(_run, tuple(urls), seconds, at_once, rate).result()


def _run(urls: Sequence[str], seconds: float, at_once: int, rate: float | None) -> Load:
    return asyncio.run(_ask(urls, seconds, at_once, rate))


async def _ask(urls: Sequence[str], seconds: float, at_once: int, rate: float | None) -> Load:
    statuses, milliseconds = Counter[int](), list[float]()
    following = cycle(urls)
    connector = aiohttp.TCPConnector(limit=0 if rate else at_once)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:

        async def ask(begun: float) -> None:
            try:
                async with session.get(next(following)) as response:
                    await response.read()
                    statuses[response.status] += 1
            except (aiohttp.ClientError, TimeoutError):
                statuses[0] += 1
            milliseconds.append(1000 * (time.perf_counter() - begun))

        async def ask_and_ask(until: float) -> None:
            while time.perf_counter() < until:
                await ask(time.perf_counter())

        started = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            if rate is None:
                for _ in range(at_once):
                    requests.create_task(ask_and_ask(started + seconds))
            else:
                for number in range(int(seconds * rate)):
                    begins = started + number / rate
                    await asyncio.sleep(max(0.0, begins - time.perf_counter()))
                    requests.create_task(ask(begins))
        elapsed = time.perf_counter() - started
    return Load(elapsed, statuses, tuple(sorted(milliseconds)))
