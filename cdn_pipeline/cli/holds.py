"""`cdn-pipeline queue hold` and `queue restore`."""

from collections.abc import Sequence

from rich.console import Console

from cdn_pipeline.catalog.sessions import open_catalog, transaction
from cdn_pipeline.cli.sections import as_text, counted
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.settings import Settings


def hold_jobs(
    settings: Settings, console: Console, shards: Sequence[str] | None, priorities: Sequence[int] | None
) -> None:
    """Puts queued jobs on hold, all of them unless shards or priorities are given, and tells how many."""
    with open_catalog(settings) as engine:
        held = transaction(
            engine, lambda connection: hold_queue(connection, INSTAGRAM, shards=shards, priorities=priorities)
        )
    console.print(as_text(f"Put {counted(held, 'job')} on hold; `cdn-pipeline queue restore` lets go."))


def restore_jobs(
    settings: Settings, console: Console, shards: Sequence[str] | None, priorities: Sequence[int] | None
) -> None:
    """Lets held jobs go, all of them unless shards or priorities are given, and tells how many."""
    with open_catalog(settings) as engine:
        restored = transaction(
            engine, lambda connection: restore_queue(connection, INSTAGRAM, shards=shards, priorities=priorities)
        )
    console.print(as_text(f"Put {counted(restored, 'job')} back into the queue."))
