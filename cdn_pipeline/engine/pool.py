"""CPU work in worker processes, such that a hostile image costs one image.

Every worker is a pebble pool of its own with one process. The processes of one pebble pool share a pipe and its lock:
one killed at the wrong moment can take the others' calls with it, or leave half a call (bytes from the internet) to be
read as a message. Here nothing is shared, a call's time begins when it is sent, and only the caller who holds a worker
sees it fail. With 112 KB in and 40 KB out it costs the parent 0.22 ms CPU per task (one shared pool: 0.19), and 0.2 %
per idle worker.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar, TypeVarTuple, cast

from pebble import ProcessExpired

from cdn_pipeline.engine.worker import Answer, Limits, Preparation, Worker, main_script, pickled_call, unpickled_answer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_START_ATTEMPTS = 3
_ANSWER_MARGIN_SECONDS = 5.0  # pebble enforces a time limit within 0.2 s; this much later it has lost the call
_CLOSE_SECONDS = 5.0  # takes about 0.2
_CPU_MARGIN_SECONDS = 1.0  # the kernel counts whole seconds; with one thread, a task's time limit comes first


class TaskTimeout(Exception):
    """The task did not end within its time, and its worker was killed."""


class OutOfCpuTime(TaskTimeout):
    """The task used up its CPU time: however slow the machine, that is the task's own doing."""


class WorkerDied(Exception):
    """The worker died while it had this task."""


class PoolBroken(Exception):
    """The task was lost through no fault of its own, or the pool is closed: the work is due again, not failed."""


class PoolUnusable(Exception):
    """Workers keep failing to start, so no task can run; the message has what the last of them said."""


class WorkerPool:
    """A fixed number of worker processes, used from one asyncio loop.

    A worker is *starting*, *free* or *busy*: it starts with the pool or in the place of another one, is busy while it
    has a task, and free again when that task has returned or raised. Anything else (time limit, death, no answer,
    cancellation, MemoryError) ends the worker, and a new one starts in its place. A lost task, and one that was out of
    memory, is tried once more on the new worker. When three workers in a row fail to start, the pool is *unusable*;
    `close` makes it *closed*; both are for good.
    """

    def __init__(
        self,
        *,
        workers: int,
        task_seconds: float,
        cpu_seconds: float | None = None,
        initializer: Callable[[], None] | None = None,
        modules: Sequence[str] = (),
        memory_bytes: int | None = 1 << 30,
        start_seconds: float = 30.0,
    ) -> None:
        """Describe the pool; nothing starts before `start` or the first `run`.

        In every worker, before its first task, `modules` are imported and `initializer` (picklable) is called.
        A task may take `task_seconds` on the clock, and `cpu_seconds` of CPU time: by default so much that one thread
        meets the clock first. `memory_bytes` limits a worker's whole address space, on Linux.
        """
        self._size = workers
        self._task_seconds = task_seconds
        self._cpu_seconds = task_seconds + _CPU_MARGIN_SECONDS if cpu_seconds is None else cpu_seconds
        self._start_seconds = start_seconds
        self._preparation = Preparation(memory_bytes, tuple(modules), initializer)
        # At most one start and one end per worker at a time.
        self._launcher = ThreadPoolExecutor(max_workers=2 * workers, thread_name_prefix="worker-pool")
        self._workers: list[Worker] = []
        self._free: asyncio.Queue[int] = asyncio.Queue()  # indices of workers that have no task
        self._lock = threading.Lock()
        self._closed = False
        self._unusable: str | None = None
        self._restarts = 0

    @property
    def restarts(self) -> int:
        """How many workers have been replaced."""
        return self._restarts

    def start(self) -> None:
        """Begin to start the workers, from any thread; returns at once."""
        with self._lock:
            if self._workers or self._closed:
                return
            main_script.hide()
            for index in range(self._size):
                self._workers.append(self._new_worker())
                self._free.put_nowait(index)

    async def run(self, function: Callable[[*Ts], T], *args: *Ts, memory_bytes: int | None = None) -> T:
        """Call `function(*args)` in a worker and return its result; what the function raises is raised here.

        Function, arguments, result and exception are pickled. Waiting for a free worker does not count as task time.
        `memory_bytes` is what the task may take on top of what its worker has, on Linux; None: all that a worker may.

        Raises:
            TaskTimeout: the task took longer than `task_seconds`; OutOfCpuTime, a kind of it: than `cpu_seconds`.
            WorkerDied: the task ended its worker.
            PoolBroken: the task was lost twice, or the pool is closed.
            PoolUnusable: no worker can be started.
        """
        self.start()
        self._check_usable()
        index = await self._free.get()
        try:
            call = pickled_call(
                function, args, Limits(self._cpu_seconds, memory_bytes)
            )  # now: it is as large as its data
            return cast(T, (await self._ask(index, call)).unwrap())
        finally:
            self._free.put_nowait(index)

    def close(self) -> None:
        """Kill all workers, from any thread, within a few seconds; tasks in hand raise `PoolBroken`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        ends = [self._launcher.submit(worker.end) for worker in self._workers]
        self._launcher.shutdown(wait=False)
        wait(ends, timeout=_CLOSE_SECONDS)
        if self._workers:
            main_script.restore()

    async def _ask(self, index: int, call: bytes) -> Answer:
        try:
            answer = await self._ask_once(index, call)
        except PoolBroken:
            return await self._ask_once(index, call)
        return await self._ask_once(index, call) if answer.out_of_memory else answer

    async def _ask_once(self, index: int, call: bytes) -> Answer:
        worker = await self._started(index)
        fit = False
        try:
            answer = unpickled_answer(await self._answer(worker, call))
            fit = not answer.out_of_memory
        finally:
            if not fit:
                self._replace(index)
        return answer

    async def _answer(self, worker: Worker, call: bytes) -> bytes:
        try:
            async with asyncio.timeout(self._task_seconds + _ANSWER_MARGIN_SECONDS) as limit:
                return await asyncio.wrap_future(worker.send(call, self._task_seconds))
        except TimeoutError:
            if limit.expired():
                raise PoolBroken("the worker never answered") from None
            raise TaskTimeout(f"no result within {self._task_seconds:g} s") from None
        except ProcessExpired as error:
            if error.exitcode == -signal.SIGXCPU:
                raise OutOfCpuTime(f"no result within {self._cpu_seconds:g} s of CPU time") from None
            raise WorkerDied(f"the worker ended with exit code {error.exitcode}") from None
        except RuntimeError as error:  # BrokenProcessPool is one
            raise PoolBroken(f"the worker was lost: {error}") from error

    async def _started(self, index: int) -> Worker:
        """The worker at this index, or in its place the first that starts."""
        for attempt in range(_START_ATTEMPTS):
            if attempt > 0:
                self._replace(index)
            self._check_usable()
            worker = self._workers[index]
            if not worker.start_error.done():
                await asyncio.shield(asyncio.wrap_future(worker.start_error))
            error = worker.start_error.result()
            if error is None:
                return worker
        self._check_usable()
        self._unusable = f"{_START_ATTEMPTS} workers in a row did not start, the last one because of {error!r}"
        raise PoolUnusable(self._unusable) from error

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise PoolUnusable(self._unusable)
        if self._closed:
            raise PoolBroken("the pool is closed")

    def _new_worker(self) -> Worker:
        return Worker(self._launcher, self._preparation, self._start_seconds)

    def _replace(self, index: int) -> None:
        with self._lock:
            if self._closed:
                return
            self._launcher.submit(self._workers[index].end)
            self._workers[index] = self._new_worker()
            self._restarts += 1
