"""Routes that tell how things are: the vitals as a parameter, and the words that all documents share."""

from importlib.metadata import version
from typing import Annotated

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends
from pydantic import BaseModel, Field

from cdn_pipeline.api.serving import Served
from cdn_pipeline.observe.health import Health, PartName
from cdn_pipeline.observe.parts import RUNBOOK, Part
from cdn_pipeline.observe.vitals import Vitals

VERSION = version("cdn-pipeline")

# Threads of their own: when the catalog hangs, all others wait for it, and that is when somebody asks for the health.
_THREADS = CapacityLimiter(8)


async def _measure(serving: Served) -> Vitals:
    return await run_sync(serving.monitor.vitals, limiter=_THREADS)


Measured = Annotated[Vitals, Depends(_measure)]
"""A route's parameter of this type is what was measured: a few seconds old at most, within five seconds."""


class Check(BaseModel):
    """How a part is."""

    status: Health = Field(description="How it is, in one word.")
    words: str = Field(description="How it is, in words.", examples=["answers in 4.2 ms"])
    first: str | None = Field(description="What to do first; null if it is well.")
    runbook: str | None = Field(
        description="The section of the runbook to read; null if it is well.",
        examples=[f"{RUNBOOK}#a-host-does-not-answer"],
    )


def worst_of(found: tuple[Part, ...], *names: PartName) -> Check:
    """Several parts told as one: its status is the worst, its words are of those that are not well."""
    told = [part for part in found if part.name in names]
    counted = [part for part in told if not part.informs]
    worst = min(counted, key=lambda part: part.health.rank) if counted else None
    health = worst.health if worst else Health.HEALTHY
    ill = [part for part in told if part.health is not Health.HEALTHY]
    return Check(
        status=health,
        words="; ".join(part.words if len(names) == 1 else f"{part.name}: {part.words}" for part in ill or told)
        or "nothing was measured yet",
        first=worst.first if worst and worst.first else None,
        runbook=f"{RUNBOOK}#{worst.section}" if worst and worst.first else None,
    )
