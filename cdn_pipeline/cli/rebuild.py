"""`cdn-pipeline rebuild-catalog`."""

from rich.console import Console
from rich.progress import Progress, TextColumn

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rebuild import Count, Rebuild, Rebuilt
from cdn_pipeline.upkeep.stores import open_stores


def rebuild_catalog(settings: Settings, console: Console, *, write: bool) -> None:
    """Tells what the stores have and the catalog lacks, and brings it back with `write`."""
    rebuilt = Rebuilt()
    with (
        open_catalog(settings) as engine,
        Progress(TextColumn("{task.description}", markup=False), console=console, transient=True) as progress,
    ):
        bar = progress.add_task("rebuilding", total=None)
        for rebuilt in Rebuild(engine, INSTAGRAM, open_stores(settings), dry_run=not write).run():
            listed, new = rebuilt.counts[Count.LISTED], rebuilt.counts[Count.NEW]
            progress.update(bar, description=f"{counted(listed, 'object')} listed, {counted(new, 'new image')}")
    _tell(console, rebuilt, write=write)


def _tell(console: Console, rebuilt: Rebuilt, *, write: bool) -> None:
    counts = rebuilt.counts
    print_title(console, "Brought back" if write else "To be brought back: nothing was changed")
    table = new_table("what", "number", numbers=("number",))
    for count in Count:
        add_row(table, count, counts[count])
    console.print(table)
    if rebuilt.undescribed:
        print_title(console, "Not understood, some of them")
        print_lines(console, [f"{each.key}: {each.reason}" for each in rebuilt.undescribed])
    console.print()
    if not write:
        console.print(as_text("`cdn-pipeline rebuild-catalog --write` does it, and leaves out what was erased."))
        return
    if counts[Count.TAKEN_DOWN] or counts[Count.KEPT_OUT]:
        console.print(as_text("Of erased images something was left: `cdn-pipeline erase --resume` takes it."))
    console.print(
        as_text("Source URLs come with the next run, which reads every source row and downloads what is new.")
    )
