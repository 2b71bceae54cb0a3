"""Asynchronous servers for tests that are not asynchronous."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

from anyio.from_thread import start_blocking_portal

_T = TypeVar("_T")


@contextmanager
def in_thread(server: AbstractAsyncContextManager[_T]) -> Iterator[_T]:
    """Enters an asynchronous context on the event loop of a thread of its own."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server) as entered:
        yield entered
