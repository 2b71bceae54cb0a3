"""The commands about pictures that are not there yet: what is known of a profile's, and how to get at them."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from cdn_pipeline.cli.errors import explained
from cdn_pipeline.cli.options import Shards
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.settings import load_settings

app = typer.Typer()


@app.command()
@explained
def profile(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The id of a profile, or anything of it that `explain` takes.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For programs: all of it as JSON, stories included.")] = False,
) -> None:
    """Show a profile on one screen: its pictures, deadlines, failures, refreshes, what the provider said of it.

    Exit status 1 if nothing is known of it.
    """
    from cdn_pipeline.cli.profile import show_profile

    if not show_profile(load_settings(), Console(), subject, as_json=as_json):
        raise typer.Exit(1)


@app.command()
@explained
def retry(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID|URL", help="Images, profiles, posts, URLs: what `explain` takes.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        FailureKind | None, typer.Option(help="All images that failed with this.", metavar="KIND", show_default=False)
    ] = None,
    shards: Shards = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="All images that failed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would become of each.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the same as JSON.")] = False,
) -> None:
    """Try again what has failed, ahead of other work: at once, from the stored original where there is one.

    An image is meant if its last attempt failed: for good, until a fresh URL comes, or until the next attempt. What is
    published, open or without a living URL is left as it is, and told. --kind and --shard together mean both.
    Exit status 1 if an ID is unknown.
    """
    from cdn_pipeline.cli.retry import Wanted, retry

    in_common = kind is not None or bool(shards) or all_failed
    if bool(subjects) == in_common or (all_failed and (kind or shards)):
        raise typer.BadParameter("name images, or --kind and --shard, or --all-failed")
    wanted = Wanted(subjects or (), kind, shards)
    if not retry(load_settings(), Console(), wanted, dry_run=dry_run, as_json=as_json):
        raise typer.Exit(1)


@app.command()
@explained
def backfill(
    start_date: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="Rows since this day (UTC).", show_default=False)
    ],
    end_date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Rows before this day (UTC); without it, until now.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Profiles of one transaction.", min=1, max=250)] = 100,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be opened.")] = False,
) -> None:
    """Open jobs for rows that were there before the pipeline was, behind all other work (priority 6, the bulk lane).

    Taken are pictures that the catalog does not know, or whose fresh URL it lacks: avatars by their profile's
    `updated_at`, posts with their carousels by `taken_at`, of each profile's latest 12 posts. Not taken are older posts
    and those without a date, what is known (so it may be interrupted and run again), and what has failed: `retry`.
    Nothing is downloaded here: runs do that.
    """
    from cdn_pipeline.cli.backfill import run_backfill
    from cdn_pipeline.sources.periods import Period

    if end_date is not None and end_date <= start_date:
        raise typer.BadParameter("the end is not after the start", param_hint="--end-date")
    period = Period(start_date.replace(tzinfo=UTC), end_date and end_date.replace(tzinfo=UTC))
    run_backfill(load_settings(), Console(), period, batch_size=batch_size, dry_run=dry_run)
