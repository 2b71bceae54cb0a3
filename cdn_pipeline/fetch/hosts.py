"""How often a host may be asked.

In this process only: each run keeps its own count.
"""

import asyncio
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from cdn_pipeline.fetch.addresses import is_inside
from cdn_pipeline.settings import Network

INSTAGRAM_DOMAINS = ("cdninstagram.com", "fbcdn.net")
INSTAGRAM_REQUESTS_PER_SECOND = 5.0


@dataclass(slots=True)
class _Queue:
    """Those who wait for one host. The lock is first come, first served, and its holder is the next to go."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_limited: bool | None = None  # not known before the host's name was looked up
    next_turn: float = 0.0  # event loop time, seconds


class HostRates:
    """Lets requests to each of Instagram's hosts go at most `requests_per_second`, evenly spaced.

    Other hosts are not limited, nor are hosts in `allowed_networks`: those are ours.
    """

    def __init__(
        self,
        *,
        allowed_networks: Sequence[Network] = (),
        requests_per_second: float = INSTAGRAM_REQUESTS_PER_SECOND,
    ) -> None:
        self._allowed_networks = allowed_networks
        self._spacing = 1 / requests_per_second
        self._queues: defaultdict[str, _Queue] = defaultdict(_Queue)

    async def turn(self, host: str) -> None:
        """Returns when `host` may be sent the next request; callers for one host go in the order they came.

        A cancelled caller gives its turn to the next one.
        """
        name = host.lower().rstrip(".")
        if not is_instagram(name):
            return
        queue = self._queues[name]
        async with queue.lock:
            if queue.is_limited is None:
                queue.is_limited = not await self._is_ours(name)
            if queue.is_limited:
                loop = asyncio.get_running_loop()
                await asyncio.sleep(queue.next_turn - loop.time())
                queue.next_turn = loop.time() + self._spacing

    async def _is_ours(self, name: str) -> bool:
        """Whether the name leads into `allowed_networks` and nowhere else."""
        if not self._allowed_networks:
            return False
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # UnicodeError: a label of more than 63 characters
            return False
        return all(is_inside(ip_address(address[0]), self._allowed_networks) for *_, address in found)


def is_instagram(host: str) -> bool:
    """Whether a host name, in lower case and without a trailing dot, is of Instagram's CDN."""
    return any(host == domain or host.endswith(f".{domain}") for domain in INSTAGRAM_DOMAINS)
