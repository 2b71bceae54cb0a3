"""`cdn-pipeline backfill`: jobs for rows that were there before the pipeline was."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cdn_pipeline.catalog.sessions import open_catalog, open_source_database
from cdn_pipeline.cli.sections import as_text, counted, print_lines
from cdn_pipeline.collections import BACKFILL_PRIORITY, INSTAGRAM, SHARDS
from cdn_pipeline.observe.unattended import run_command
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.discovery import Change
from cdn_pipeline.sources.periods import Period
from cdn_pipeline.upkeep.backfill import Backfilled, backfill


def run_backfill(settings: Settings, console: Console, period: Period, *, batch_size: int, dry_run: bool) -> None:
    """Opens the jobs of a period, and says what happens next. It may be interrupted and repeated."""
    found = Backfilled()
    with open_catalog(settings) as catalog, open_source_database(settings) as source:
        batches = backfill(source, catalog, INSTAGRAM, period, batch_size=batch_size, dry_run=dry_run)
        try:
            with _progress(console) as progress:
                bar = progress.add_task("reading rows", total=len(SHARDS))
                for found in batches:
                    words = f"{counted(found.profiles, 'profile')}, {counted(found.jobs.total(), 'job')}, shards"
                    progress.update(bar, completed=SHARDS.index(found.shard), description=words)
                progress.update(bar, completed=len(SHARDS))
        except KeyboardInterrupt:
            _tell(console, found, dry_run=dry_run)
            console.print("Interrupted: run it again, and it goes on with what is not known yet.")
            raise
    _tell(console, found, dry_run=dry_run)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _tell(console: Console, found: Backfilled, *, dry_run: bool) -> None:
    jobs = found.jobs.total()
    opened = "Would open" if dry_run else "Opened"
    console.print(
        as_text(
            f"{opened} {counted(jobs, 'job')} of priority {BACKFILL_PRIORITY} for {counted(found.profiles, 'profile')} "
            f"with {counted(found.images, 'picture')} of that time; {found.changes[Change.UNCHANGED]:,} are known."
        )
    )
    if found.arrived_dead:
        dead = counted(found.arrived_dead, "new picture")
        console.print(as_text(f"{dead} came with a URL that has expired, and wait for a fresh one.", style="yellow"))
    for kind, count in found.problems.most_common():
        console.print(as_text(f"{count:,} rows or URLs cannot be used: {kind}", style="yellow"))
    if not jobs or dry_run:
        return
    console.print("The sensor starts runs for them in the bulk lane; without it:")
    print_lines(console, [run_command([shard for shard, count in found.jobs.items() if count])])
