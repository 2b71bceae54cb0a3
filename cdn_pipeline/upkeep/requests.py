"""Requests to stores and CDN, some at once."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

AT_ONCE = 32

_T = TypeVar("_T")


async def some_at_once(work: Iterable[Awaitable[_T]]) -> list[_T]:
    """The results, in the order of the work; all of it has ended when this returns or raises."""
    places = asyncio.Semaphore(AT_ONCE)

    async def do(each: Awaitable[_T]) -> _T:
        async with places:
            return await each

    results = await asyncio.gather(*map(do, work), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
