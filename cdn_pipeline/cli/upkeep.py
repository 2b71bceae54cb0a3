"""`cdn-pipeline clean-up` and `cdn-pipeline verify`."""

import asyncio
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import ObjectStore
from cdn_pipeline.upkeep.clean_up import Cleaned, CleanUp, Kind, grace_of
from cdn_pipeline.upkeep.erase import Eraser
from cdn_pipeline.upkeep.stores import Part, open_stores
from cdn_pipeline.upkeep.survey import Survey
from cdn_pipeline.upkeep.verify import Verification, Verified


def clean_up(settings: Settings, console: Console, *, delete: bool, limit: int, force: bool) -> None:
    """Tells what nobody needs any more, and removes it with `delete`."""
    done: dict[Kind, Cleaned] = {}
    with open_catalog(settings) as engine, _progress(console) as progress:
        bar = progress.add_task("cleaning up", total=None)
        eraser = Eraser.of(settings, engine)
        work = CleanUp(
            engine,
            INSTAGRAM,
            eraser.stores,
            grace_of(settings),
            limit=limit,
            dry_run=not delete,
            force=force,
            eraser=eraser,
        )
        for cleaned in work.run():
            done[cleaned.kind] = cleaned
            progress.update(bar, description=f"{cleaned.kind}: {cleaned.count:,}")
    print_title(console, "Removed" if delete else "To be removed: nothing was changed")
    console.print(_cleaned_table(done.values()))
    console.print()
    if not delete:
        console.print(as_text("`cdn-pipeline clean-up --delete` does it."))
    elif not all(cleaned.is_all for cleaned in done.values()):
        console.print(as_text(f"More is left (this run's limit is {limit:,} of each kind): run it again."))


def _cleaned_table(done: Iterable[Cleaned]) -> Table:
    table = new_table("what", "number", "bytes", "", numbers=("number", "bytes"))
    for cleaned in done:
        add_row(table, cleaned.kind, cleaned.count, cleaned.size, "" if cleaned.is_all else "and more")
    return table


def verify(settings: Settings, console: Console, *, sample: int | None, repair: bool, force: bool) -> bool:
    """Compares catalog and stores; returns whether all is as it should be, or has a job now that mends it.

    Of a sample every object is read; of all (`sample` is None) it is asked for, and what is unknown is counted. `force`
    repairs even a store that has lost most objects.
    """
    done: dict[Part, Verified] = {}
    with open_catalog(settings) as engine, _progress(console) as progress:
        stores = open_stores(settings).by_part
        if repair:
            asyncio.run(_check(stores.values()))
        bar = progress.add_task("verifying", total=None)
        verification = Verification(
            engine, INSTAGRAM, stores, sample=sample, read=sample is not None, repair=repair, force=force
        )
        for verified in verification.run():
            done[verified.part] = verified
            progress.update(bar, description=f"{verified.part}: {verified.looked_at:,}, wrong: {verified.wrong:,}")
        progress.update(bar, description="listing the stores")
        unknown = verification.unknown() if sample is None else {}
    print_title(console, "Catalog against stores")
    console.print(_verified_table(done.values(), unknown))
    samples = [finding.words for verified in done.values() for finding in verified.samples]
    if samples:
        print_title(console, "Not repaired, some of them" if repair else "Wrong, some of them")
        print_lines(console, samples)
    wrong = sum(each.wrong for each in done.values())
    repaired = sum(each.repaired for each in done.values())
    console.print()
    console.print(as_text(_conclusion(wrong, repaired, repair=repair)))
    return wrong == repaired


async def _check(stores: Iterable[ObjectStore]) -> None:
    for store in stores:
        await store.check()


def _verified_table(done: Iterable[Verified], unknown: Mapping[Part, Survey]) -> Table:
    numbers = ("looked at", "wrong", "in repair", "unknown")
    table = new_table("what", *numbers, "of these", numbers=numbers)
    for each in done:
        survey = unknown.get(each.part)
        kinds = ", ".join(f"{count:,} {problem}" for problem, count in each.problems.items())
        add_row(
            table, each.part, each.looked_at, each.wrong, each.repaired, survey.unknown_count if survey else None, kinds
        )
    return table


def _conclusion(wrong: int, repaired: int, *, repair: bool) -> str:
    if not wrong:
        return "The stores hold what the catalog says."
    if not repair:
        return f"{counted(wrong, 'object')} wrong: `cdn-pipeline verify --all --repair` opens jobs that put them back."
    words = f"{repaired:,} of {counted(wrong, 'object')} will be put back by jobs that are open now"
    if repaired < wrong:
        words += "; the others have an open job already, no original of the present picture, or a dead URL"
    return f"{words}. The sensor starts runs for them; without it, run `publish_images`."


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}", markup=False), console=console, transient=True)
