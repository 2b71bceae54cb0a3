"""CPU time of this process, which runs one thread."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def timed(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> tuple[Result, float]:
    """What the call gives, and the CPU seconds it took."""
    started = time.process_time()
    result = function(*arguments, **named)
    return result, time.process_time() - started
