"""`cdn-pipeline retry`: tries again what should be, and says of each image what happened and what comes next."""

import uuid
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import chain

import pydantic_core
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.actor import actor
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.lookup import find_images
from cdn_pipeline.observe.unattended import run_command, sensor_silence
from cdn_pipeline.queue.retrying import TRIED_AGAIN, RetryAnswer
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.retry import RetriedImage, failing_images, retry_images

_SHOWN = 50  # images, of thousands that have failed alike

_WORDS = {
    RetryAnswer.REOPENED: "a new job is due",
    RetryAnswer.HURRIED: "its next attempt is due now",
    RetryAnswer.HELD: "on hold: `cdn-pipeline queue restore` lets it go",
    RetryAnswer.OPEN: "due or in hand already",
    RetryAnswer.COMPLETED: "published: nothing to do",
    RetryAnswer.WAITS_FOR_URL: "waits for a fresh URL, and then heals by itself",
    RetryAnswer.ERASED: "erased meanwhile",
    RetryAnswer.UNKNOWN: "its job is gone: ask again",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be tried again: images by `subjects`, as `explain` takes them; or failing ones by kind and shards."""

    subjects: Sequence[str] = ()
    kind: FailureKind | None = None
    shards: Sequence[str] | None = None


def retry(settings: Settings, console: Console, wanted: Wanted, *, dry_run: bool, as_json: bool) -> bool:
    """Tries images again; returns whether every subject names an image."""
    with open_catalog(settings) as engine:
        with engine.connect() as connection:
            image_ids, unknown = _find(connection, wanted)
        pages = retry_images(engine, INSTAGRAM, image_ids, actor=actor(), dry_run=dry_run)
        found = list(chain.from_iterable(pages))
        with engine.connect() as connection:
            hint = sensor_silence(connection) if _due_shards(found) else None
    if as_json:
        document = {"dry_run": dry_run, "images": found, "unknown": unknown, "hint": hint}
        print(pydantic_core.to_json(document, indent=2).decode())  # noqa: T201  # unwrapped and without colour
    else:
        _print(console, found, unknown, hint, dry_run=dry_run)
    return not unknown


def _find(connection: sa.Connection, wanted: Wanted) -> tuple[Sequence[uuid.UUID], Sequence[str]]:
    """The images that are meant, each once, and the subjects that mean none."""
    if not wanted.subjects:
        return failing_images(connection, INSTAGRAM, kind=wanted.kind, shards=wanted.shards), ()
    found = {subject: find_images(connection, INSTAGRAM, subject).image_ids for subject in wanted.subjects}
    unknown = [subject for subject, image_ids in found.items() if not image_ids]
    return list(dict.fromkeys(chain.from_iterable(found.values()))), unknown


def _due_shards(found: Sequence[RetriedImage]) -> Set[str]:
    return {image.shard for image in found if image.answer in TRIED_AGAIN}


def _print(
    console: Console, found: Sequence[RetriedImage], unknown: Sequence[str], hint: str | None, *, dry_run: bool
) -> None:
    for subject in unknown:
        console.print(
            as_text(f"No image is known by {subject}: `cdn-pipeline explain` says how it was looked for.", "red")
        )
    if not found:
        if not unknown:
            console.print("Nothing to try again: no such image has failed.")
        return
    print_title(console, "Would be tried again: nothing was changed" if dry_run else "Tried again")
    console.print(_table(found))
    if len(found) > _SHOWN:
        console.print(f"  and {counted(len(found) - _SHOWN, 'image')} more")
    console.print()
    counts = Counter(image.answer for image in found)
    for answer, count in counts.most_common():
        console.print(as_text(f"{counted(count, 'image')}: {_WORDS[answer]}"))
    due = _due_shards(found)
    if due and not dry_run:
        by_itself = "The sensor starts a run for them within a minute; without it:"
        console.print(as_text(f"{hint}, or run:", "yellow") if hint else by_itself)
        print_lines(console, [run_command(due)])


def _table(found: Sequence[RetriedImage]) -> Table:
    table = new_table("image", "what", "shard", "had failed with", "now", whole=["image"])
    for image in found[:_SHOWN]:
        add_row(table, str(image.image_id), image.source_type, image.shard, image.failure, _WORDS[image.answer])
    return table
