"""What goes wrong at the origin: which picture misbehaves, how, and for how long. The same seed, the same faults."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType


class Fault(StrEnum):
    """A way to answer a good request wrongly."""

    RATE_LIMITED = "rate_limited"  # 429 with Retry-After
    SLOW = "slow"  # the body comes late
    TRUNCATED = "truncated"  # Content-Length promises more than comes
    HTML_PAGE = "html_page"  # 200 with a login page
    SERVER_ERROR = "server_error"  # 500
    STALE_URL = "stale_url"  # 404 until the URL is signed again
    GONE = "gone"  # 404 for good


# Shares of the pictures, 5.5 % together. What a second attempt heals is 4 %, what a fresh URL heals 1 % (a pipeline may
# want one for the login pages as well), what nothing heals 0.5 %: a first run ends well above 95 % success.
DEFAULT_RATES: Mapping[Fault, float] = MappingProxyType(
    {
        Fault.RATE_LIMITED: 0.01,
        Fault.SLOW: 0.01,
        Fault.TRUNCATED: 0.01,
        Fault.HTML_PAGE: 0.005,
        Fault.SERVER_ERROR: 0.01,
        Fault.STALE_URL: 0.005,
        Fault.GONE: 0.005,
    }
)
NO_FAULTS: Mapping[Fault, float] = MappingProxyType({})


@dataclass(slots=True)
class _Ordered:
    """A fault ordered for one picture: its next `attempts` attempts."""

    fault: Fault
    attempts: int


class Misbehaviour:
    """Decides for each good request whether it is answered wrongly.

    `rates` are shares of pictures between 0 and 1; `seed` decides which pictures. A picture drawn for a transient fault
    shows it at its first attempt, whichever of its URLs is asked for.

    Raises:
        ValueError: the rates sum to more than 1.
    """

    def __init__(self, rates: Mapping[Fault, float] = DEFAULT_RATES, *, seed: int = 0) -> None:
        if sum(rates.values()) > 1:
            raise ValueError(f"fault rates sum to {sum(rates.values()):g}, which is more than 1")
        self._rates = dict(rates)
        self._seed = seed
        self._ordered: dict[str, _Ordered] = {}
        self._gone: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._stale_until: dict[str, datetime] = {}

    def order(self, path: str, fault: Fault, *, attempts: int = 1) -> None:
        """Gives one picture a fault for its next `attempts` attempts.

        GONE lasts for good; STALE_URL until a URL comes that expires later than the one it was first shown to.
        """
        if fault is Fault.GONE:
            self._gone.add(path)
        else:
            self._ordered[path] = _Ordered(fault, attempts)
            self._stale_until.pop(path, None)

    def next_fault(self, path: str, url_expires_at: datetime) -> Fault | None:
        """What to do to this attempt on the picture at `path`; counts the attempt."""
        self._attempts[path] += 1
        if path in self._gone:
            return Fault.GONE
        fault = self._due(path)
        if fault is Fault.STALE_URL:
            self._stale_until[path] = url_expires_at
        if path in self._stale_until and url_expires_at <= self._stale_until[path]:
            return Fault.STALE_URL
        return fault

    def drawn(self, path: str) -> Fault | None:
        """The fault that the seed gives to the picture at `path`."""
        digest = hashlib.sha256(f"{self._seed} {path}".encode()).digest()
        draw = int.from_bytes(digest[:8]) / 2**64
        for fault, rate in self._rates.items():
            draw -= rate
            if draw < 0:
                return fault
        return None

    def _due(self, path: str) -> Fault | None:
        ordered = self._ordered.get(path)
        if ordered is not None:
            ordered.attempts -= 1
            if ordered.attempts == 0:
                del self._ordered[path]
            return ordered.fault
        fault = self.drawn(path)
        return fault if fault is Fault.GONE or self._attempts[path] == 1 else None
