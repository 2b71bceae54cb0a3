"""What a download reaches: listeners that ought to stay silent, a record of all dials, and names that lead anywhere."""

import errno
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any

import pytest

FORBIDDEN_HOSTS = ("127.0.0.2", "127.1.2.3", "127.255.255.254", "::1")


class Witnesses:
    """Sockets that listen, all on one port, and on port 80 where this account may; each tells who has connected.

    The kernel completes a connection without us, so nothing that was dialled is missed, however briefly.
    """

    def __init__(self, hosts: Sequence[str], stack: ExitStack) -> None:
        self.port = _free_port(hosts)
        self._listeners = [
            stack.enter_context(_listening(host, self.port)) for host in hosts if _may_listen(host, self.port)
        ]
        self._listeners += [stack.enter_context(_listening(host, 80)) for host in hosts if _may_listen(host, 80)]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        return [listener.getsockname()[:2] for listener in self._listeners]

    def connections(self) -> int:
        """How many connections were made since the last time this was asked."""
        return sum(_accepted(listener) for listener in self._listeners)


@contextmanager
def witnesses(*hosts: str) -> Iterator[Witnesses]:
    with ExitStack() as stack:
        yield Witnesses(hosts, stack)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=512)
    listener.setblocking(False)
    return listener


def _may_listen(host: str, port: int) -> bool:
    try:
        _listening(host, port).close()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EADDRINUSE, errno.EADDRNOTAVAIL):
            raise
        return False
    return True


def _free_port(hosts: Sequence[str]) -> int:
    while True:
        with socket.create_server((hosts[0], 0)) as probe:
            port: int = probe.getsockname()[1]
        if all(_may_listen(host, port) for host in hosts if ":" not in host):
            return port


def _accepted(listener: socket.socket) -> int:
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


_records: list[list[tuple[str, int]]] = []
_hooked = False


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _records and isinstance(arguments[1], tuple):
        host, port = arguments[1][:2]
        for record in _records:
            record.append((str(host), int(port)))


@contextmanager
def recorded_dials() -> Iterator[list[tuple[str, int]]]:
    """Every host and port that any socket of this process is told to connect to, reachable or not.

    Python's own audit events tell: there is nothing in between that could be passed by.
    """
    global _hooked
    if not _hooked:  # for good: an audit hook cannot be taken away
        sys.addaudithook(_on_event)
        _hooked = True
    record: list[tuple[str, int]] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


class Names:
    """What names lead to, in place of DNS: nothing leaves this machine.

    Numbers in all their spellings are read by the system's own `getaddrinfo`; any other name is unknown.
    """

    def __init__(self, look_up: Callable[..., Any]) -> None:
        self._numeric = look_up
        self._answers: dict[str, Iterator[Sequence[str]]] = {}
        self.asked: list[str] = []
        self.lead("localhost", "127.0.0.1", "::1")

    def lead(self, name: str, *addresses: str) -> None:
        """The name leads to these addresses, all at once and always."""
        self.alternate(name, addresses)

    def alternate(self, name: str, *answers: Sequence[str]) -> None:
        """The name leads elsewhere each time that it is asked for, and then from the start again."""
        self._answers[name] = cycle(answers)

    def __call__(
        self, host: str | None, port: int | str | None, family: int = 0, kind: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        name = (host or "").lower().rstrip(".")
        addresses: Sequence[str | None] = [host]
        if name in self._answers:
            self.asked.append(name)
            addresses = next(self._answers[name])
        return [
            info
            for address in addresses
            for info in self._numeric(address, port, family, kind, proto, socket.AI_NUMERICHOST)
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Takes the place of the look-up that every client of this process comes to in the end."""
    names = Names(socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", names)
    return names
