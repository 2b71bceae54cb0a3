"""`cdn-pipeline rollout`: start, pause, resume, and see how far rollouts are."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from cdn_pipeline.catalog.sessions import open_catalog, transaction
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_lines, print_title
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.observe.unattended import run_command
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rollout import (
    RolloutStatus,
    pause_rollout,
    resume_rollout,
    rollout_status,
    start_rollout,
)


def start(settings: Settings, console: Console, recipe: str, *, force: bool) -> None:
    """Opens the jobs of a rollout shard by shard, and says what happens next. It may be interrupted and repeated."""
    with open_catalog(settings) as engine:
        shards = start_rollout(engine, INSTAGRAM, recipe, force=force)
        with _progress(console) as progress:
            bar = progress.add_task(f"{recipe}: opening jobs", total=len(SHARDS))
            for step in shards:
                words = f"{recipe}: {counted(step.total, 'job')} opened, shards"
                progress.update(bar, advance=1, description=words)
    if not (step.total or step.let_go):
        console.print(as_text(f"{recipe}: no job was opened; `cdn-pipeline rollout` shows how far it is."))
        return
    let_go = f" and let {counted(step.let_go, 'job')} go that had been on hold" if step.let_go else ""
    words = f"Opened {counted(step.total, 'job')} of {recipe}{let_go}."
    console.print(as_text(f"{words} The sensor starts runs for them in the bulk lane; without it:"))
    print_lines(console, [run_command()])


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), console=console)


def pause(settings: Settings, console: Console, recipe: str) -> None:
    """Puts the rollout's jobs on hold."""
    with open_catalog(settings) as engine:
        held = transaction(engine, lambda connection: pause_rollout(connection, INSTAGRAM, recipe))
    words = f"Paused {recipe}, with {counted(held, 'job')} on hold; `cdn-pipeline rollout {recipe} --resume` goes on."
    console.print(as_text(words))


def resume(settings: Settings, console: Console, recipe: str) -> None:
    """Lets a paused rollout go on."""
    with open_catalog(settings) as engine:
        released = transaction(engine, lambda connection: resume_rollout(connection, INSTAGRAM, recipe))
    console.print(as_text(f"Resumed {recipe}, with {counted(released, 'job')} that had been on hold."))


def show(settings: Settings, console: Console) -> None:
    """How far rollouts are, and which recipes there are."""
    with open_catalog(settings) as engine, engine.connect() as connection:
        rollouts = rollout_status(connection, INSTAGRAM)
    if rollouts:
        print_title(console, "Rollouts, in images")
        console.print(_rollout_table(rollouts))
    else:
        console.print("No recipe was rolled out yet.")
    print_title(console, "Recipes")
    table = new_table("name", "version", "format", "sizes", "quality", "made", numbers=("quality",))
    for recipe in INSTAGRAM.recipes:
        sizes = ", ".join(f"{size.width}×{size.height}" for size in recipe.sizes)
        made = "of every image" if recipe == INSTAGRAM.recipe else "by rollout"
        add_row(table, recipe.name, f"v{recipe.version}", recipe.format, sizes, recipe.quality, made)
    console.print(table)
    console.print()
    console.print("`cdn-pipeline rollout RECIPE` starts one, `--pause` and `--resume` hold it and let it go.")


def _rollout_table(rollouts: list[RolloutStatus]) -> Table:
    counts = ("done", "open", "on hold", "failed", "of all")
    table = new_table("recipe", "version", "state", *counts, numbers=counts)
    for each in rollouts:
        numbers = (f"{count:,}" for count in (each.done, each.open, each.held, each.failed, each.total))
        add_row(table, each.recipe, f"v{each.version}", _state(each), *numbers)
    return table


def _state(rollout: RolloutStatus) -> str:
    if rollout.paused:
        return "paused"
    if rollout.done + rollout.failed >= rollout.total:
        return "rolled out"
    return "on hold" if rollout.held and not rollout.open else "rolling out"
