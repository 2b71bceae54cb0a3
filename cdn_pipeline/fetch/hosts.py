"""How often a host may be asked: the turns of its rate limit, in the order in which callers came.

Turns are reserved somewhere that all runs share, a second's worth at a time; nothing here knows where.
"""

import asyncio
import socket
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit

from cdn_pipeline.fetch.addresses import is_inside
from cdn_pipeline.settings import Network

INSTAGRAM_DOMAINS = ("cdninstagram.com", "fbcdn.net")
INSTAGRAM_SPACING = timedelta(seconds=0.2)  # five requests a second
TURNS_AT_ONCE = 5  # are reserved at most: those of a second, so that a run that dies wastes no more

# Reserves so many turns of a host, `spacing` apart; returns the wait until the first.
Reserve = Callable[[str, int, timedelta], Awaitable[timedelta]]


@dataclass(slots=True)
class _Queue:
    """Those who wait for one host. The lock is first come, first served, and its holder is the next to go."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_limited: bool | None = None  # not known before the host's name was looked up
    waiting: int = 0
    turns: deque[float] = field(default_factory=deque)  # reserved; event loop time, seconds
    last_went: float = float("-inf")


class HostRates:
    """Lets requests to each of Instagram's hosts go evenly spaced, in turns that `reserve` grants.

    Other hosts are not limited, nor are hosts in `allowed_networks`: those are ours.
    """

    def __init__(
        self, reserve: Reserve, *, allowed_networks: Sequence[Network] = (), spacing: timedelta = INSTAGRAM_SPACING
    ) -> None:
        self._reserve = reserve
        self._allowed_networks = allowed_networks
        self._spacing = spacing
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)

    def is_busy(self, host: str) -> bool:
        """Whether a second's worth of requests waits for its turns already."""
        return host in self._queues and self._queues[host].waiting >= TURNS_AT_ONCE

    async def turn(self, host: str) -> None:
        """Returns when `host` (as `host_of` writes it) may be sent the next request; callers go in the order they came.

        A cancelled caller leaves its turn to the next one.
        """
        if not is_instagram(host):
            return
        queue = self._queues[host]
        queue.waiting += 1
        try:
            async with queue.lock:
                if queue.is_limited is None:
                    queue.is_limited = not await self._is_ours(host)
                if queue.is_limited:
                    await self._next_turn(host, queue)
        finally:
            queue.waiting -= 1

    async def _next_turn(self, host: str, queue: _Queue) -> None:
        loop, spacing = asyncio.get_running_loop(), self._spacing.total_seconds()
        while True:
            if not queue.turns:
                count = min(queue.waiting, TURNS_AT_ONCE)
                wait = await self._reserve(host, count, self._spacing)
                first = loop.time() + wait.total_seconds()
                queue.turns.extend(first + number * spacing for number in range(count))
            turn = queue.turns[0]
            await asyncio.sleep(max(turn, queue.last_went + spacing) - loop.time())
            queue.turns.popleft()
            if loop.time() < turn + spacing:  # else it has lapsed: now is the turn of another run
                queue.last_went = loop.time()
                return

    async def _is_ours(self, host: str) -> bool:
        """Whether the name leads into `allowed_networks` and nowhere else."""
        if not self._allowed_networks:
            return False
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: a label of more than 63 characters
            return False
        return all(is_inside(ip_address(address[0]), self._allowed_networks) for *_, address in found)


def host_of(url: str) -> str:
    """The URL's host in lower case without a trailing dot, as the catalog writes it too; empty if it has none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # brackets that are not closed
        return ""


def is_instagram(host: str) -> bool:
    """Whether a host name, in lower case and without a trailing dot, is of Instagram's CDN."""
    return any(host == domain or host.endswith(f".{domain}") for domain in INSTAGRAM_DOMAINS)
