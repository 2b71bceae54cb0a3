"""What the workers do in test_pool: a module of its own, as light as theirs."""

import ctypes
import os
import resource
import sys
import time
from pathlib import Path

from cdn_pipeline.failures import FailureKind, ImageFailure


class Picky(Exception):
    """An exception that pickles but does not come back."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def double(number: int) -> int:
    return 2 * number


def process_id() -> int:
    return os.getpid()


def reverse(data: bytes) -> bytes:
    return data[::-1]


def reverse_and_sign(data: bytes) -> tuple[bytes, int]:
    return data[::-1], os.getpid()


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def loaded(module: str) -> bool:
    return module in sys.modules


def wait(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def hold_the_interpreter() -> int:
    """Never ends, and never lets another thread run Python code."""
    return sum(range(1 << 62))


def fail_as_image() -> None:
    raise ImageFailure(FailureKind.RATE_LIMITED, "slow down", retry_after_seconds=7.5)


def fail_pickily() -> None:
    raise Picky(reason="not today")


def return_a_lambda() -> object:
    return lambda: None


def leave() -> None:
    sys.exit("nothing left to do")


def vanish() -> None:
    os._exit(0)


def crash() -> None:
    """What a bug in a C library does."""
    ctypes.string_at(0)


def crash_over(*_: object) -> None:
    """A decoder's bug, whatever it is given."""
    crash()


def decode_for_ever(*_: object) -> None:
    """A decoder without an end, whatever it is given."""
    hold_the_interpreter()


def burn(cpu_seconds: float) -> int:
    end = time.process_time() + cpu_seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def core_limit() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_CORE)


def allocate(size: int) -> int:
    return len(bytearray(size))


def count_and_allocate(log: str, size: int, hide: bool) -> int:
    """Notes its process in a file, then takes memory; a decoder would hide the MemoryError in a failure of its own."""
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()}\n")
    try:
        return allocate(size)
    except MemoryError as error:
        if hide:
            raise ImageFailure(FailureKind.OUT_OF_MEMORY, "while decoding") from error
        raise


def initialize_badly() -> None:
    raise LookupError("the codec is not installed")


def initialize_by_dying() -> None:
    os._exit(3)


def initialize_for_ever() -> None:
    time.sleep(3600)


def initialize_second_time(marker: str) -> None:
    if not Path(marker).exists():
        Path(marker).touch()
        raise LookupError("not the first time")
