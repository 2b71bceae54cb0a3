"""Options that several commands have."""

from typing import Annotated

import typer

from cdn_pipeline.collections import SHARDS


def _require_shards(shards: list[str] | None) -> list[str] | None:
    for shard in shards or ():
        if shard not in SHARDS:
            raise typer.BadParameter(f"{shard!r} is no shard: they are {SHARDS[0]} to {SHARDS[-1]}")
    return shards


Shards = Annotated[
    list[str] | None,
    typer.Option("--shard", help="Only this shard; may be given several times.", callback=_require_shards),
]
Priorities = Annotated[
    list[int] | None, typer.Option("--priority", help="Only this priority; may be given several times.", min=1, max=10)
]
