"""The commands, in the order in which a user meets them."""

from typing import Annotated

import typer
from rich.console import Console

from cdn_pipeline.cli import delivery_commands, picture_commands
from cdn_pipeline.cli.errors import explained, explained_with_status_1
from cdn_pipeline.cli.options import Priorities, Shards
from cdn_pipeline.settings import load_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Mirrors images whose URLs expire to immutable URLs on a CDN. Configured by the environment and `.env`.",
)
queue_app = typer.Typer(no_args_is_help=True, help="Take jobs out of every run's reach, and give them back.")
app.add_typer(queue_app, name="queue")
app.add_typer(picture_commands.app)
app.add_typer(delivery_commands.app)


Port = Annotated[int, typer.Option(help="The port on 127.0.0.1.", min=1, max=65535)]


@app.command()
@explained
def demo() -> None:
    """Mirror several hundred photographs from URLs that die, on this machine alone, and prove it.

    Everything lies under `var/`; run it again and it finds nothing to do.
    """
    from cdn_pipeline.demo.show import Demo

    if not Demo(load_settings(), Console(soft_wrap=True)).play():
        raise typer.Exit(1)


@app.command()
@explained
def dev(port: Annotated[int, typer.Option(help="The port of Dagster's UI on 127.0.0.1.")] = 3000) -> None:
    """Open Dagster's UI, with the demo's origin and the API beside it (port 8000).

    With a real SOURCE_DATABASE_URL there is no origin; with a remote store there is no API: `cdn-pipeline serve`.
    """
    from cdn_pipeline.demo.dev import run_dev

    raise typer.Exit(run_dev(load_settings(), port))


@app.command()
@explained
def serve(
    port: Port = 8000,
    host: Annotated[str, typer.Option(help="The address to listen on: 0.0.0.0 for all.")] = "127.0.0.1",
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--no-watch", help="Evaluate alerts every 10 s; by default if ALERT_URLS is set."),
    ] = None,
) -> None:
    """Serve the API (docs/api.md), and renditions of a local folder store as the CDN would.

    Of several such processes let one watch: each would tell that the catalog is away.
    """
    from cdn_pipeline.cli.serving import run_server

    run_server(load_settings(), host=host, port=port, watch=watch)


@app.command()
@explained
def doctor(
    ask: Annotated[bool, typer.Option("--ask", help="Put one question to the provider, which costs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the same as JSON.")] = False,
) -> None:
    """Say what is wrong with this set-up and what to do about it; exit status 1 if something does not work.

    Looks at configuration, machine, both databases, both stores (a throw-away object in each), CDN, Dagster and the
    credentials. Run it after every change of `.env`, and when something is odd. It prints no secret.
    """
    from cdn_pipeline.cli.doctor import examine_deployment

    if not examine_deployment(Console(), ask_provider=ask, as_json=as_json):
        raise typer.Exit(1)


@app.command()
@explained
def bench(
    images: Annotated[
        int, typer.Option(help="A sample of at most so many; they are held in memory.", min=10, max=1000)
    ] = 200,
) -> None:
    """Say which stage bounds this deployment: some of its images through all stages, then without each of them.

    Downloads them up to three times from their sources, at the rate that all runs share. Nothing is published: jobs go
    into a scratch catalog, objects below `.check/` of the stores, and both are deleted. Not while other runs work.
    Exit status 1: nothing could be measured.
    """
    from cdn_pipeline.cli.bench import show_bottleneck

    if not show_bottleneck(load_settings(), Console(), images=images):
        raise typer.Exit(1)


@app.command()
@explained
def migrate() -> None:
    """Bring the catalog's schema up to date.

    Run it after every upgrade and whenever CDN_BASE_URL changes. The embedded database does it by itself.
    """
    from cdn_pipeline.catalog import migrate as migrations
    from cdn_pipeline.catalog.sessions import open_unmigrated_catalog

    settings = load_settings()
    with open_unmigrated_catalog(settings) as engine:
        migrations.migrate(engine, settings.public_base_url)
    typer.echo(f"The catalog is up to date; its URLs begin with {settings.public_base_url}.")


@app.command()
@explained
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the same as JSON.")] = False,
) -> None:
    """Show the state of the whole at a glance; exit status 1 unless it is healthy."""
    from cdn_pipeline.cli.status import show_status

    if not show_status(load_settings(), Console(), as_json=as_json):
        raise typer.Exit(1)


@app.command()
@explained
def alerts(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to everybody in ALERT_URLS.")] = False,
) -> None:
    """Show what fires, what was told and what is over; exit status 1 if something fires, or a test does not arrive."""
    from cdn_pipeline.cli.alerts import show_alerts, tell_test

    settings, console = load_settings(), Console()
    if not (tell_test(settings, console) if test else show_alerts(settings, console)):
        raise typer.Exit(1)


@app.command()
@explained
def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ID|URL",
            help="The id of an image, a profile, a post, a medium or a job; a public URL, path or key; "
            "an original's SHA-256; a source URL, whenever it was signed.",
            show_default=False,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="The full story of each image, if they are several.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="URLs in full, and every job.")] = False,
) -> None:
    """Tell an image's whole story, and why it is or is not due; exit status 1 if there is no such image."""
    from cdn_pipeline.cli.explain import explain_images

    if not explain_images(load_settings(), Console(), subject, every=every, verbose=verbose):
        raise typer.Exit(1)


@app.command()
@explained
def rollout(
    recipe: Annotated[str | None, typer.Argument(help="Its name; without it, how rollouts stand.")] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Put its jobs on hold.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Let its jobs go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Try again what failed.")] = False,
) -> None:
    """Make the renditions of a recipe for all images, from stored originals: nothing is downloaded."""
    from cdn_pipeline.cli import rollouts

    if pause + resume + force > 1:
        raise typer.BadParameter("--pause, --resume and --force exclude each other")
    if (pause or resume or force) and recipe is None:
        raise typer.BadParameter("name the recipe that is meant", param_hint="RECIPE")
    settings, console = load_settings(), Console()
    if recipe is None:
        rollouts.show(settings, console)
    elif pause:
        rollouts.pause(settings, console, recipe)
    elif resume:
        rollouts.resume(settings, console, recipe)
    else:
        rollouts.start(settings, console, recipe, force=force)


@app.command()
@explained_with_status_1
def erase(
    url: Annotated[
        str | None, typer.Argument(help="One picture: its public URL or path, or a source URL, whenever it was signed.")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", metavar="ID", help="All images of this profile.")] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="ID", help="One picture, by its image's id.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the audit: a ticket, not a name.")] = "not given",
    requested_by: Annotated[str | None, typer.Option("--by", help="Who asks, for the audit.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish the erasures that are not done.")] = False,
    lift: Annotated[bool, typer.Option("--lift", help="Let in again what was erased.")] = False,
) -> None:
    """Take a profile or a picture down: catalog, stores and CDN; nothing lets it in again. Alone: how erasures stand.

    Exit status 0: done; 2: gone from the stores, but the CDN's purge is pending; 1: not finished, run it again.
    """
    from getpass import getuser

    from cdn_pipeline.cli import erasure

    subjects = [subject for subject in (url, owner, image) if subject]
    settings, console = load_settings(), Console()
    if len(subjects) > 1 or (resume and (subjects or lift)) or (lift and not subjects):
        raise typer.BadParameter("name one: a URL, --owner or --image; --resume goes alone, --lift with one of them")
    request = erasure.Request(owner, url or image, requested_by or getuser(), reason)
    if resume:
        status = erasure.resume(settings, console)
    elif not subjects:
        status = erasure.show(settings, console)
    elif lift:
        status = erasure.lift(settings, console, request, yes=yes)
    else:
        status = erasure.erase(settings, console, request, dry_run=dry_run, yes=yes)
    raise typer.Exit(status)


@app.command(name="clean-up")
@explained
def clean_up(
    delete: Annotated[bool, typer.Option("--delete", help="Do it. Without this, only tell.")] = False,
    limit: Annotated[int, typer.Option(help="Of each kind at most so many; the next run goes on.", min=1)] = 10_000,
    force: Annotated[bool, typer.Option("--force", help="Even if the catalog knows few of a store's objects.")] = False,
) -> None:
    """Tell what nobody needs any more in stores and catalog: superseded renditions, unknown objects, old jobs."""
    from cdn_pipeline.cli import upkeep

    upkeep.clean_up(load_settings(), Console(), delete=delete, limit=limit, force=force)


@app.command()
@explained
def verify(
    sample: Annotated[int, typer.Option(help="Read so many objects of each store, drawn at random.", min=1)] = 200,
    every: Annotated[bool, typer.Option("--all", help="Ask for every object, and count what is unknown.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Open jobs that put back what is lost.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Repair even if most objects are lost.")] = False,
) -> None:
    """Compare catalog and stores; exit status 1 if something is wrong and not in repair."""
    from cdn_pipeline.cli import upkeep

    if not upkeep.verify(load_settings(), Console(), sample=None if every else sample, repair=repair, force=force):
        raise typer.Exit(1)


@app.command(name="rebuild-catalog")
@explained
def rebuild_catalog(
    write: Annotated[bool, typer.Option("--write", help="Do it. Without this, only tell.")] = False,
) -> None:
    """Bring back what the stores have and the catalog has lost, or what an old backup of it lacks.

    Nothing is downloaded. It can be interrupted and run again.
    """
    from cdn_pipeline.cli import rebuild

    rebuild.rebuild_catalog(load_settings(), Console(), write=write)


@queue_app.command()
@explained
def hold(
    shards: Shards = None,
    priorities: Priorities = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Put queued jobs on hold: no run takes them until `queue restore`. What runs have in hand they finish."""
    from cdn_pipeline.cli.holds import hold_jobs

    if not yes:
        typer.confirm("Images that wait on hold may expire. Put the queue on hold?", abort=True)
    hold_jobs(load_settings(), Console(), shards, priorities)


@queue_app.command()
@explained
def restore(shards: Shards = None, priorities: Priorities = None) -> None:
    """Let jobs go that are on hold. Those of a paused rollout stay until it is resumed."""
    from cdn_pipeline.cli.holds import restore_jobs

    restore_jobs(load_settings(), Console(), shards, priorities)
