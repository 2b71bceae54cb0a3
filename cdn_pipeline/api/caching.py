"""Answers that no cache may keep."""

from fastapi import Depends, Response


async def _forbid_caching(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NEVER_CACHED = [Depends(_forbid_caching)]
"""The `dependencies` of a router whose answers are of the moment: health that a cache remembers is nobody's health."""
