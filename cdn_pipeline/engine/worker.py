"""One worker process: how it starts, makes a call, and ends.

Processes are spawned. Two are ready after 0.11-0.15 s with 20 MB each; with a forkserver after 0.10-0.11 s with 17 MB
each and 10 MB for the server. That buys no process between us and the workers, which would have to be kept from
signals and from outliving us, and could not preload libvips: it starts threads, and threads do not survive a fork.
"""

import ctypes
import importlib
import math
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from pebble import CONSTS, ProcessFuture, ProcessPool

START_MARGIN_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


class Answer(NamedTuple):
    """What came of a call: its result, or the exception it raised.

    `out_of_memory` says that a MemoryError caused the exception: such a process is not to be trusted again. (In a test
    the next, healthy image failed with "broken data stream".)
    """

    value: Any
    raised: bool = False
    out_of_memory: bool = False

    def unwrap(self) -> Any:
        """Return the result or raise the exception."""
        if self.raised:
            raise self.value
        return self.value


class Limits(NamedTuple):
    """What one call may take on top of what its process has taken before; `memory_bytes` None: all that it may have."""

    cpu_seconds: float
    memory_bytes: int | None = None


class Preparation(NamedTuple):
    """What every process does before its first call."""

    memory_bytes: int | None
    modules: tuple[str, ...]
    initializer: Callable[[], None] | None


class Worker:
    """One process, alone in a pebble pool of its own, with at most one call at a time.

    pebble puts a new process in the place of one that ended. It never gets a call from us: it is not prepared, and its
    pipe may hold half a call.
    """

    def __init__(self, launcher: Executor, preparation: Preparation, start_seconds: float) -> None:
        """Start the process in a thread of `launcher`; that thread has to outlive it (see `_die_with_parent`)."""
        self._pool = ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn"))
        self._call: ProcessFuture[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()
        self.start_error: Future[Exception | None] = launcher.submit(self._start, preparation, start_seconds)
        """Resolves when the process is prepared, or has failed to."""

    def send(self, call: bytes, seconds: float) -> ProcessFuture[bytes]:
        """Send a call (`pickled_call`) to be answered (`unpickled_answer`) within its time.

        The future ends with pebble's `TimeoutError`, `ProcessExpired` (the process died of the call) or
        `BrokenProcessPool`, or in rare races never. Raises RuntimeError when the process is known to be gone.
        """
        with self._lock:
            if self._ended:
                raise BrokenProcessPool("the worker was ended")
            self._call = self._pool.schedule(_answer, (call,), timeout=seconds)
            return self._call

    def end(self) -> None:
        """Kill the process and wait for it, some 0.2 s; a call in hand ends with BrokenProcessPool."""
        with self._lock:
            self._ended = True
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        if self._call is not None and not self._call.done():  # pebble forgets it
            self._call.set_exception(BrokenProcessPool("the worker was ended"))

    def _start(self, preparation: Preparation, seconds: float) -> Exception | None:
        """Prepare the process by a first call, because pebble only logs what its own initializers raise."""
        CONSTS.term_timeout = 0  # our processes ignore SIGTERM: pebble need not wait before it sends SIGKILL
        try:
            call = self.send(pickled_call(_prepare, preparation, Limits(seconds)), seconds)
            unpickled_answer(call.result(seconds + START_MARGIN_SECONDS)).unwrap()
        except Exception as error:
            return error
        return None


class _MainScript:
    """Hides the parent's script from spawned processes while any pool is open.

    multiprocessing imports the parent's `__main__` in every child. If that is a console script (`dagster`,
    `cdn-pipeline`), every worker imports Dagster: the first image came after 2.1 s instead of 0.6 s. What was started
    with `python -m` has a `__spec__`, by which multiprocessing knows better.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools = 0
        self._hidden: tuple[dict[str, Any], str] | None = None

    def hide(self) -> None:
        """Count one more open pool; the first takes the path of the script away."""
        with self._lock:
            self._pools += 1
            main = sys.modules["__main__"]
            if self._hidden is None and getattr(main, "__spec__", None) is None and "__file__" in main.__dict__:
                self._hidden = main.__dict__, main.__dict__.pop("__file__")

    def restore(self) -> None:
        """Count one open pool less; the last puts the path of the script back."""
        with self._lock:
            self._pools -= 1
            if self._pools == 0 and self._hidden is not None:
                namespace, path = self._hidden
                namespace["__file__"] = path
                self._hidden = None


main_script = _MainScript()


def pickled_call(function: Callable[..., Any], args: Sequence[Any], limits: Limits) -> bytes:
    """`function(*args)` for `Worker.send`, to be kept within these limits.

    We pickle calls and answers ourselves: what cannot be pickled, imported or called is then this call's exception, and
    not the end of the process or of pebble's threads.
    """
    return pickle.dumps((function, tuple(args), limits), pickle.HIGHEST_PROTOCOL)


def unpickled_answer(answer: bytes) -> Answer:
    """What `Worker.send` got."""
    value: Answer = pickle.loads(answer)  # noqa: S301 - from our own process
    return value


# From here on: in the worker


def _answer(call: bytes) -> bytes:
    try:
        function, args, limits = pickle.loads(call)  # noqa: S301 - from our own parent
        with _kept_within(limits):
            return pickle.dumps(Answer(function(*args)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _pickled_error(error)
    except BaseException:  # SystemExit: nothing that the parent should raise in its event loop
        os._exit(1)


@contextmanager
def _kept_within(limits: Limits) -> Iterator[None]:
    """Re-arms the process's limits for one call, and lifts them for the time between calls.

    The kernel keeps them, also where C code never returns. Out of CPU time the process dies of SIGXCPU: the second
    line, should nobody be left who keeps the time. More memory is refused, as a rule with a MemoryError.
    """
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.cpu_seconds))
    if limits.memory_bytes is not None and sys.platform == "linux":
        _limit(resource.RLIMIT_AS, _address_space() + limits.memory_bytes)
    try:
        yield
    finally:
        _limit(resource.RLIMIT_CPU, None)
        _limit(resource.RLIMIT_AS, None)


def _limit(what: int, amount: int | None) -> None:
    """Sets a soft limit, at most the hard one; None: just that."""
    _, hard = resource.getrlimit(what)
    if amount is None or resource.RLIM_INFINITY != hard < amount:
        amount = hard
    resource.setrlimit(what, (amount, hard))


def _address_space() -> int:
    """Bytes of address space that this process has; 10 µs."""
    pages, _ = Path("/proc/self/statm").read_text().split(maxsplit=1)
    return int(pages) * resource.getpagesize()


def _pickled_error(error: Exception) -> bytes:
    error.add_note(f"In the worker:\n{traceback.format_exc()}")
    out_of_memory = _caused_by_memory_error(error)
    try:
        answer = pickle.dumps(Answer(error, raised=True, out_of_memory=out_of_memory))
        pickle.loads(answer)  # noqa: S301 - exceptions with arguments of their own often do not come back
    except Exception:
        answer = pickle.dumps(Answer(RuntimeError(traceback.format_exc()), raised=True, out_of_memory=out_of_memory))
    return answer


def _caused_by_memory_error(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _prepare(memory_bytes: int | None, modules: Sequence[str], initializer: Callable[[], None] | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach all of a process group or service; the parent decides
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an outcome here, and its dump could fill the disk
    if memory_bytes is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for module in modules:
        importlib.import_module(module)
    if initializer is not None:
        initializer()


def _die_with_parent() -> None:
    """End this process with the parent, even in the middle of a call.

    Linux does so also while C code holds the GIL, but goes by the *thread* that started us.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()
    if not parent.is_alive():  # it ended before we asked to be told
        os._exit(1)


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
