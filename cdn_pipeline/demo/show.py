"""`make demo`: several hundred photographs go from signed, expiring URLs to immutable objects, and the proof of it."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo.processes import free_port, python, running, stop, tail
from cdn_pipeline.demo.proof import (
    CatalogState,
    Verified,
    Withheld,
    catalog_state,
    published_urls,
    source_urls,
    verify_published_urls_serve,
    verify_source_urls_are_dead,
)
from cdn_pipeline.demo.stage import Stage, folder, open_stage, require_embedded
from cdn_pipeline.settings import Settings, project_root
from cdn_pipeline.store.objects import cache_control

FIVE_DAYS = timedelta(days=5)
SAY_EVERY_SECONDS = 10.0
_SERVE_PORT = 8000
_UI, _PAGES = "http://127.0.0.1:3000", f"http://127.0.0.1:{_SERVE_PORT}"  # where `make dev` has them
_ALL_SHARDS = (
    f'{{"dagster/asset_partition_range_start": "{SHARDS[0]}", "dagster/asset_partition_range_end": "{SHARDS[-1]}"}}'
)

ReadState = Callable[[], CatalogState]


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of the job `publish_images` as a person sees it: exit status and seconds."""

    exit_status: int
    seconds: float
    log: Path


class Demo:
    """The demo's acts, each told on the console."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._runs = 0
        self._said_at = 0.0

    def play(self) -> bool:
        """Runs the job, moves the origin's clock, verifies; returns whether everything holds.

        Raises:
            ConfigurationError: the environment points at a real deployment.
            PhotographsMissingError: the package with the photographs is not installed.
            ChildFailedError: origin or server does not start.
        """
        require_embedded(self._settings)
        say = self._console.print
        with open_stage(self._settings) as stage, open_catalog(self._settings) as catalog:
            say(f"[bold]1. The world.[/] {_census(stage.database)}; an origin at {stage.origin_url} signs their URLs,")
            say("   lets them die after four to five days, and misbehaves now and then, as Instagram's does.\n")
            read_state = partial(catalog_state, catalog, stage.withhold_picture())
            before = read_state()
            say("[bold]2. The job[/] `publish_images`, all 64 shards, through Dagster:")
            runs = [self._run_job(read_state)]
            state = read_state()
            if runs[0].exit_status == 0 and state.waiting:
                say(
                    f"   {state.waiting} images wait for a fresh URL ({_kinds(state)}). The application fetches its "
                    "profiles again, so\n   every URL is another one, and the job runs once more:"
                )
                stage.fetch_profiles_again()
                runs.append(self._run_job(read_state))
                state = read_state()
            if state.published == before.published and state.published and not state.waiting:
                say("   Nothing to do: what was published is published.")
            return self._prove(stage, catalog, state, runs, new=state.published - before.published)

    def _run_job(self, read_state: ReadState) -> JobRun:
        self._runs += 1
        log = folder(self._settings) / f"job-{self._runs}.log"
        started = time.monotonic()
        process = subprocess.Popen(  # noqa: S603
            python(
                "-m",
                "dagster",
                "job",
                "execute",
                "-m",
                "cdn_pipeline.definitions",
                "-j",
                "publish_images",
                "--tags",
                _ALL_SHARDS,
            ),
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            env=environment(self._settings),
        )
        try:
            self._follow(process, read_state)
        finally:
            stop(process)
        run = JobRun(process.returncode, time.monotonic() - started, log)
        if run.exit_status != 0:
            self._console.print(
                f"   [red]the job ended with status {run.exit_status}[/]; {log} ends with:\n{tail(log, 12)}"
            )
        return run

    def _follow(self, process: subprocess.Popen[bytes], read_state: ReadState) -> None:
        """A progress bar from the catalog, which knows the state of each image at every moment."""
        columns = ("   ", TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("starting Dagster", total=None)
            while process.poll() is None:
                state = read_state()
                if state.images:
                    self._say_progress(state)
                    progress.update(task, description="images published", total=state.images, completed=state.published)
                time.sleep(0.5)
            state = read_state()
            progress.update(task, description="images published", total=state.images, completed=state.published)

    def _say_progress(self, state: CatalogState) -> None:
        """Where there is no terminal for the bar: a line now and then."""
        if not self._console.is_terminal and time.monotonic() - self._said_at > SAY_EVERY_SECONDS:
            self._said_at = time.monotonic()
            self._console.print(f"   {state.published} of {state.images} images published")

    def _prove(self, stage: Stage, catalog: sa.Engine, state: CatalogState, runs: list[JobRun], *, new: int) -> bool:
        say = self._console.print
        say(f"\n[bold]3. The proof.[/] The origin's clock moves {FIVE_DAYS.days} days.")
        stage.advance_clock(FIVE_DAYS)
        sources = source_urls(catalog)
        dead = verify_source_urls_are_dead(sources)
        served = self._verify_published(catalog)
        self._console.print(_table(state, runs, dead, served, new))
        for complaint in (*dead.complaints[:5], *served.complaints[:5]):
            say(f"   [red]{complaint}[/]")
        complete = served.asked == 2 * state.published and not state.waiting and not state.lost
        holds = all(run.exit_status == 0 for run in runs) and dead.holds and served.holds and complete
        if holds:
            say("[bold green]It holds.[/]")
            self._say_what_next(state.withheld)
        else:
            say(f"[bold red]It does not hold.[/] Logs are in {folder(self._settings)}.")
        return holds

    def _say_what_next(self, withheld: Withheld | None) -> None:
        """Where to look, with ids that are there."""
        say = self._console.print
        say(
            f"\n[bold]Next:[/] `make dev` shows the run in Dagster's UI, {_UI}/runs, and the operations page, {_PAGES}."
        )
        if withheld is None:
            return
        say(f"   a profile's pictures:  {_PAGES}/profiles/{withheld.owner_id}")
        say(f"   in the terminal:       cdn-pipeline profile {withheld.owner_id}  (after `. .venv/bin/activate`)")
        if withheld.fails:
            say("One image failed on purpose: a login page came in place of its picture. With `make dev` it heals:")
            say(f"   look at it:            {_PAGES}/images/{withheld.image_id}")
            say("   and press Retry        (signed in: `ADMIN_API_TOKEN=secret make dev`)")
            say(f"   or                     cdn-pipeline retry {withheld.image_id}")

    def _verify_published(self, catalog: sa.Engine) -> Verified:
        port = free_port(_SERVE_PORT)
        served_at = f"http://127.0.0.1:{port}"
        log = folder(self._settings) / "serve.log"
        command = python("-m", "cdn_pipeline.cli", "serve", "--port", str(port))
        with running(command, log, ready_url=f"{served_at}/livez", environment=environment(self._settings)):
            header = cache_control(self._settings.browser_cache_days)
            return verify_published_urls_serve(published_urls(catalog), served_at, cache_control=header)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the demo's child processes."""
    return {
        "DAGSTER_HOME": str(project_root()),
        **os.environ,
        "CDN_PIPELINE_VAR_DIR": str(settings.cdn_pipeline_var_dir),
    }


def _census(database: sa.Engine) -> str:
    with database.connect() as connection:
        profiles = connection.scalar(sa.text("SELECT count(*) FROM profiles"))
        posts = connection.scalar(sa.text("SELECT count(*) FROM posts"))
    return f"An application database with {profiles} profiles and {posts} posts"


def _kinds(state: CatalogState) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(state.unpublished.items()))


def _table(state: CatalogState, runs: list[JobRun], dead: Verified, served: Verified, new: int) -> Table:
    gone = state.unpublished["source_gone"]
    table = Table(title="What was seen", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("number", justify="right")
    seconds = sum(run.seconds for run in runs)
    for what, number in (
        ("images in the source rows", f"{state.images}"),
        ("published", f"{state.published}"),
        ("published by this demo", f"{new}"),
        ("deleted at the source (404 under two URLs)", f"{gone}"),
        ("waiting for a fresh URL", f"{state.waiting}"),
        ("failing on purpose, until it is tried again", f"{state.failing}"),
        ("images lost on our watch", f"{state.lost}"),
        ("healed by a retry within a run", f"{state.retried}"),
        ("originals", f"{state.bytes_in / 1e6:.1f} MB"),
        ("renditions, 256 and 512 px", f"{state.bytes_out / 1e6:.1f} MB"),
        (f"{'runs' if len(runs) > 1 else 'run'} of the job, Dagster's start included", f"{seconds:.1f} s"),
        ("source URLs that are dead after five days", f"{dead.good} of {dead.asked}"),
        ("published URLs that serve their bytes", f"{served.good} of {served.asked}"),
    ):
        table.add_row(what, number)
    return table
