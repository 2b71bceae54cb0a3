import asyncio
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pebble import ProcessExpired

from cdn_pipeline.engine import pool as pool_module
from cdn_pipeline.engine.pool import OutOfCpuTime, PoolBroken, PoolUnusable, TaskTimeout, WorkerDied, WorkerPool
from cdn_pipeline.engine.worker import Limits, Preparation, Worker, pickled_call, unpickled_answer
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline_tests.engine import pool_tasks as tasks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


@contextmanager
def opened(*, workers: int = 2, task_seconds: float = 20, **options: Any) -> Iterator[WorkerPool]:
    pool = WorkerPool(workers=workers, task_seconds=task_seconds, **options)
    try:
        yield pool
    finally:
        pool.close()


def outcome_of(calls: Callable[[], Awaitable[T]]) -> T:
    """What the calls give; "none hangs" means within this time."""

    async def bounded() -> T:
        return await asyncio.wait_for(calls(), 40)

    return asyncio.run(bounded())


async def worker_ids(pool: WorkerPool, workers: int = 2) -> set[int]:
    """The process ids of all workers: each is kept busy until the last has told its own."""
    return set(await asyncio.gather(*(pool.run(tasks.wait, 0.2) for _ in range(workers))))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            children.setdefault(parent_of(int(entry.name)), []).append(int(entry.name))
    found, queue = set[int](), [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found.update(below)
        queue += below
    return found


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_every_call_gets_its_own_result() -> None:
    with opened() as pool:

        async def calls() -> list[int]:
            return await asyncio.gather(*(pool.run(tasks.double, number) for number in range(200)))

        assert outcome_of(calls) == [2 * number for number in range(200)]
        assert pool.restarts == 0


def test_calls_larger_than_a_pipe_come_through() -> None:
    data = random.Random(1).randbytes(5_000_000)
    with opened(workers=1) as pool:
        assert outcome_of(lambda: pool.run(tasks.reverse, data)) == data[::-1]


def test_a_pool_started_in_one_thread_serves_the_loop_of_another() -> None:
    with opened() as pool:
        pool.start()
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(outcome_of(lambda: pool.run(tasks.double, 21))))
        thread.start()
        thread.join()
        assert results == [42]


def test_what_a_function_raises_is_raised_to_its_caller_alone() -> None:
    with opened() as pool:

        async def calls() -> list[int | BaseException | None]:
            before, after = (pool.run(tasks.double, number) for number in (1, 2))
            return [*await asyncio.gather(before, pool.run(tasks.fail_as_image), after, return_exceptions=True)]

        before, failure, after = outcome_of(calls)
        assert (before, after) == (2, 4)
        assert isinstance(failure, ImageFailure)
        assert (failure.kind, failure.detail) == (FailureKind.RATE_LIMITED, "slow down")
        assert failure.retry_after_seconds == 7.5
        assert pool.restarts == 0


def test_an_image_failure_survives_pickling() -> None:
    failure = ImageFailure(FailureKind.RATE_LIMITED, "slow down", retry_after_seconds=7.5)
    copy = pickle.loads(pickle.dumps(failure))
    assert (copy.kind, copy.detail, copy.retry_after_seconds) == (failure.kind, failure.detail, 7.5)
    assert str(copy) == str(failure)


def test_what_cannot_be_pickled_is_an_error_of_that_call() -> None:
    with opened(workers=1) as pool:

        async def calls() -> int:
            with pytest.raises(RuntimeError, match="not today"):
                await pool.run(tasks.fail_pickily)
            with pytest.raises((pickle.PicklingError, AttributeError)):
                await pool.run(tasks.return_a_lambda)
            with pytest.raises((pickle.PicklingError, AttributeError)):
                await pool.run(lambda: None)
            return await pool.run(tasks.double, 4)

        assert outcome_of(calls) == 8
        assert pool.restarts == 0


def test_a_worker_killed_at_work_costs_the_task_it_had() -> None:
    with opened() as pool:

        async def calls() -> None:
            victim, _ = await worker_ids(pool)
            long = [asyncio.create_task(pool.run(tasks.wait, 1.0)) for _ in range(2)]
            await asyncio.sleep(0.3)
            queued = [asyncio.create_task(pool.run(tasks.double, number)) for number in range(20)]
            os.kill(victim, signal.SIGKILL)
            outcomes = await asyncio.gather(*long, return_exceptions=True)
            assert sorted(type(outcome).__name__ for outcome in outcomes) == ["WorkerDied", "int"]
            assert await asyncio.gather(*queued) == [2 * number for number in range(20)]

        outcome_of(calls)
        assert pool.restarts == 1


def test_a_call_is_pickled_when_a_worker_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled: list[object] = []

    def noted(function: Callable[..., object], args: Sequence[object], limits: Limits) -> bytes:
        pickled.append(function)
        return pickled_call(function, args, limits)

    monkeypatch.setattr(pool_module, "pickled_call", noted)
    with opened() as pool:

        async def calls() -> None:
            await worker_ids(pool)
            pickled.clear()
            waiting = [asyncio.create_task(pool.run(tasks.wait, 0.5)) for _ in range(5)]
            await asyncio.sleep(0.1)
            assert len(pickled) == 2
            await asyncio.gather(*waiting)

        outcome_of(calls)


def test_idle_workers_killed_cost_nothing() -> None:
    with opened() as pool:

        async def calls(pause: float) -> None:
            for victim in await worker_ids(pool):
                os.kill(victim, signal.SIGKILL)
            await asyncio.sleep(pause)
            data = bytes(112_000)
            assert await asyncio.gather(*(pool.run(tasks.reverse, data) for _ in range(10))) == [data] * 10

        async def noticed_and_unnoticed() -> None:
            await calls(pause=0)
            await calls(pause=0.5)

        outcome_of(noticed_and_unnoticed)
        assert pool.restarts == 4


@pytest.mark.parametrize("function", [tasks.leave, tasks.vanish, tasks.crash])
def test_a_task_that_ends_its_process_is_named_and_the_next_one_runs(function: Callable[[], None]) -> None:
    with opened(workers=1, task_seconds=1) as pool:

        async def calls() -> int:
            with pytest.raises((WorkerDied, TaskTimeout)):
                await pool.run(function)
            return await pool.run(tasks.double, 4)

        assert outcome_of(calls) == 8


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"initializer": tasks.initialize_badly}, "LookupError.*the codec is not installed"),
        ({"modules": ["cdn_pipeline.no_such_module"]}, "No module named 'cdn_pipeline.no_such_module'"),
        ({"initializer": tasks.initialize_by_dying}, "Abnormal termination|expired"),
        ({"initializer": tasks.initialize_for_ever, "start_seconds": 0.5}, "timeout"),
    ],
)
def test_workers_that_cannot_start_make_the_pool_unusable_and_say_why(options: dict[str, Any], cause: str) -> None:
    with opened(**options) as pool:

        async def calls() -> list[object]:
            first = await asyncio.gather(*(pool.run(tasks.double, 1) for _ in range(5)), return_exceptions=True)
            return [*first, *await asyncio.gather(pool.run(tasks.double, 1), return_exceptions=True)]

        for outcome in outcome_of(calls):
            assert isinstance(outcome, PoolUnusable)
            assert re.search(cause, str(outcome))


def test_a_worker_that_fails_to_start_once_is_replaced(tmp_path: Path) -> None:
    first_start = tmp_path / "started"
    with opened(workers=1, initializer=partial(tasks.initialize_second_time, str(first_start))) as pool:
        assert outcome_of(lambda: pool.run(tasks.double, 2)) == 4
        assert pool.restarts == 1


@pytest.mark.parametrize("function", [partial(tasks.wait, 3600), tasks.hold_the_interpreter])
def test_a_task_that_hangs_is_ended_and_the_next_ones_run(function: Callable[[], int]) -> None:
    with opened(workers=1, task_seconds=1) as pool:

        async def calls() -> list[object]:
            return await asyncio.gather(
                pool.run(function), *(pool.run(tasks.double, number) for number in range(5)), return_exceptions=True
            )

        hung, *others = outcome_of(calls)
        assert isinstance(hung, TaskTimeout)
        assert others == [0, 2, 4, 6, 8]


def test_a_worker_whose_timer_is_lost_ends_itself_once_it_is_out_of_cpu_time() -> None:
    with ThreadPoolExecutor(2) as launcher:
        worker = Worker(launcher, Preparation(None, (), None), 20)
        assert worker.start_error.result() is None
        call = pickled_call(tasks.hold_the_interpreter, (), Limits(cpu_seconds=0.5))
        with pytest.raises(ProcessExpired) as caught:
            worker.send(call, 1000).result(30)
        assert caught.value.exitcode == -signal.SIGXCPU
        worker.end()


def test_cpu_time_is_counted_anew_for_every_task() -> None:
    with ThreadPoolExecutor(2) as launcher:
        worker = Worker(launcher, Preparation(None, (), None), 20)
        call = pickled_call(tasks.burn, (0.5,), Limits(cpu_seconds=0.6))
        processes = {unpickled_answer(worker.send(call, 20).result(30)).unwrap() for _ in range(3)}
        assert len(processes) == 1
        worker.end()


def test_out_of_cpu_time_is_told_from_out_of_time() -> None:
    with opened(workers=1, task_seconds=20, cpu_seconds=0.5) as pool:

        async def calls() -> int:
            with pytest.raises(OutOfCpuTime):
                await pool.run(tasks.hold_the_interpreter)
            return await pool.run(tasks.double, 4)

        assert outcome_of(calls) == 8


def test_memory_is_limited_for_one_task_and_not_for_the_next() -> None:
    with opened(workers=1) as pool:

        async def calls() -> None:
            for size, limit in ((60, 80), (60, 80), (200, None), (60, 80)):
                allowed = limit if limit is None else limit << 20
                assert await pool.run(tasks.allocate, size << 20, memory_bytes=allowed) == size << 20
            assert pool.restarts == 0
            with pytest.raises(MemoryError):
                await pool.run(tasks.allocate, 100 << 20, memory_bytes=80 << 20)

        outcome_of(calls)


def test_a_crash_leaves_no_core_dump_behind() -> None:
    with opened(workers=1) as pool:
        assert outcome_of(lambda: pool.run(tasks.core_limit)) == (0, 0)


def test_a_call_that_is_never_answered_is_made_again() -> None:
    with opened(workers=1, task_seconds=1) as pool:

        async def calls() -> int:
            os.kill(await pool.run(tasks.process_id), signal.SIGSTOP)
            return await pool.run(tasks.double, 1)

        assert outcome_of(calls) == 2
        assert pool.restarts == 1


def test_waiting_for_a_free_worker_is_not_task_time() -> None:
    with opened(workers=1, task_seconds=1) as pool:

        async def calls() -> list[int]:
            return await asyncio.gather(*(pool.run(tasks.wait, 0.4) for _ in range(5)))

        assert len(outcome_of(calls)) == 5
        assert pool.restarts == 0


@pytest.mark.parametrize(("hide", "error"), [(True, ImageFailure), (False, MemoryError)])
def test_a_task_out_of_memory_is_tried_again_in_a_new_worker(
    tmp_path: Path, hide: bool, error: type[Exception]
) -> None:
    log = tmp_path / "processes"
    with opened(workers=1, memory_bytes=512 << 20) as pool:

        async def calls() -> int:
            with pytest.raises(error):
                await pool.run(tasks.count_and_allocate, str(log), 1 << 30, hide)
            return await pool.run(tasks.process_id)

        next_worker = outcome_of(calls)
        assert len({*log.read_text().split(), str(next_worker)}) == 3
        assert pool.restarts == 2


def test_cancelled_calls_give_their_workers_back() -> None:
    with opened() as pool:

        async def calls() -> list[int]:
            for pause in (0, 0.01, 0.3):  # while the workers start, and while they work
                doomed = [asyncio.create_task(pool.run(tasks.wait, 3600)) for _ in range(6)]
                await asyncio.sleep(pause)
                for task in doomed:
                    task.cancel()
                outcomes = await asyncio.gather(*doomed, return_exceptions=True)
                assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            return await asyncio.gather(*(pool.run(tasks.double, number) for number in range(10)))

        assert outcome_of(calls) == [2 * number for number in range(10)]


def test_signals_to_the_whole_group_do_not_interrupt_a_worker() -> None:
    with opened(workers=1) as pool:

        async def calls() -> tuple[int, int]:
            worker = await pool.run(tasks.process_id)
            task = asyncio.create_task(pool.run(tasks.wait, 0.5))
            await asyncio.sleep(0.2)
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(worker, number)
            return worker, await task

        before, after = outcome_of(calls)
        assert before == after


def test_closing_ends_all_workers_and_all_calls() -> None:
    with opened() as pool:

        async def calls() -> tuple[set[int], list[object]]:
            workers = await worker_ids(pool)
            hung = [asyncio.create_task(pool.run(tasks.wait, 3600)) for _ in range(6)]
            await asyncio.sleep(0.3)
            await asyncio.to_thread(pool.close)
            return workers, await asyncio.gather(*hung, pool.run(tasks.double, 1), return_exceptions=True)

        workers, outcomes = outcome_of(calls)
        assert all(isinstance(outcome, PoolBroken) for outcome in outcomes)
        assert not any(alive(worker) for worker in workers)
        pool.close()


@pytest.mark.parametrize("pause", [0, 0.02, 0.1])
def test_a_pool_can_be_closed_while_it_starts(pause: float) -> None:
    before = descendants(os.getpid())
    with opened(workers=4) as pool:
        pool.start()
        time.sleep(pause)
    left = descendants(os.getpid()) - before
    assert not any(b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left)


def test_a_pool_closed_before_its_start_starts_nothing() -> None:
    with opened() as pool:
        pool.close()
        with pytest.raises(PoolBroken):
            outcome_of(lambda: pool.run(tasks.double, 1))


def test_whatever_is_killed_every_call_ends() -> None:
    randomness = random.Random(7)
    data = randomness.randbytes(112_000)
    victims = set[int]()

    with opened(workers=3, task_seconds=1) as pool:

        async def kill_at_random(until: float) -> None:
            while time.monotonic() < until:
                await asyncio.sleep(randomness.uniform(0, 0.3))
                if victims:
                    with suppress(ProcessLookupError):
                        os.kill(victims.pop(), signal.SIGKILL)

        async def call_until(until: float) -> int:
            results = 0
            while time.monotonic() < until:
                with suppress(WorkerDied, TaskTimeout, PoolBroken):
                    reversed_data, worker = await pool.run(tasks.reverse_and_sign, data)
                    assert reversed_data == data[::-1]
                    victims.add(worker)
                    results += 1
            return results

        async def calls() -> int:
            until = time.monotonic() + 5
            killer = asyncio.create_task(kill_at_random(until))
            results = await asyncio.gather(*(call_until(until) for _ in range(8)))
            await killer
            assert await asyncio.gather(*(pool.run(tasks.double, number) for number in range(9))) == [*range(0, 18, 2)]
            return sum(results)

        assert outcome_of(calls) > 0
        assert pool.restarts > 3


def script(folder: Path, body: str) -> subprocess.Popen[str]:
    """Run a program the way pip's console scripts are: a file with a `__file__` and no `__spec__`."""
    file = folder / "console-script"
    file.write_text(textwrap.dedent(body))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True, env=environment)


def test_workers_of_a_console_script_do_not_import_what_it_imports(tmp_path: Path) -> None:
    body = """
        import asyncio, sys
        import dagster
        from cdn_pipeline.engine.pool import WorkerPool
        from cdn_pipeline_tests.engine import pool_tasks

        async def report():
            pool, other = (WorkerPool(workers=1, task_seconds=20) for _ in range(2))
            pool.start(), other.start()
            other.close()
            print([await pool.run(pool_tasks.loaded, name) for name in ("dagster", "sqlalchemy")])
            pool.close()

        if __name__ == "__main__":
            path = __file__
            asyncio.run(report())
            print("dagster" in sys.modules, __file__ == path)
        """
    with script(tmp_path, body) as program:
        output, _ = program.communicate(timeout=60)
    assert output.splitlines() == ["[False, False]", "True True"]


def test_after_kill_9_of_the_parent_no_process_is_left(tmp_path: Path) -> None:
    body = """
        import asyncio
        from cdn_pipeline.engine.pool import WorkerPool
        from cdn_pipeline_tests.engine import pool_tasks

        async def work():
            pool = WorkerPool(workers=3, task_seconds=3600)
            await asyncio.gather(*(pool.run(pool_tasks.wait, 0.2) for _ in range(3)))
            calls = asyncio.gather(pool.run(pool_tasks.wait, 3600), pool.run(pool_tasks.hold_the_interpreter))
            await asyncio.sleep(0.3)
            print("working", flush=True)
            await calls

        if __name__ == "__main__":
            asyncio.run(work())
        """
    with script(tmp_path, body) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "working\n"
        processes = descendants(program.pid)
        program.kill()
    assert len(processes) == 4  # three workers and multiprocessing's resource tracker
    assert eventually(lambda: not any(alive(pid) for pid in processes))
