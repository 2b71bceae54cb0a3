"""Measurements that many ask for and that take a while: made once at a time, and remembered for a moment."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Reading(Generic[_T]):
    """One measurement. Whoever asks gets one that is at most `fresh_for` seconds old, or waits for the next.

    It is made in a thread of its own, and never twice at once: a part that hangs costs one thread, however many ask for
    it. Half of that time before it turns old, asking has it made anew behind the asker's back, so that regular askers
    never wait.
    """

    def __init__(self, measure: Callable[[], _T], *, fresh_for: float) -> None:
        self._measure = measure
        self._fresh_for = fresh_for
        self._lock = threading.Lock()
        self._made: Future[_T] | None = None
        self._made_at = float("-inf")  # monotonic seconds
        self._next: Future[_T] | None = None

    def ask(self) -> Future[_T]:
        """What was measured, or what is being measured now; its result raises whatever the measurement raised."""
        with self._lock:
            age = time.monotonic() - self._made_at
            coming = self._next
            if coming is None and age > self._fresh_for / 2:
                coming = self._begin()
            if self._made is not None and age <= self._fresh_for:
                return self._made
            assert coming is not None, "what is old is measured anew"
            return coming

    def _begin(self) -> Future[_T]:
        """Has it measured anew. On a machine without a thread to spare that has failed, and whoever asks next tries."""
        future: Future[_T] = Future()
        try:
            # A daemon: one that hangs does not keep the process from ending.
            threading.Thread(target=self._make, args=(future,), name="reading", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            future.set_exception(error)
        else:
            self._next = future
        return future

    def _make(self, future: Future[_T]) -> None:
        try:
            value = self._measure()
        except BaseException as error:
            self._note_made(future)
            future.set_exception(error)
        else:
            self._note_made(future)
            future.set_result(value)

    def _note_made(self, future: Future[_T]) -> None:
        """Before anybody has the result: whoever asks after that is never given an older one."""
        with self._lock:
            self._made, self._made_at, self._next = future, time.monotonic(), None
