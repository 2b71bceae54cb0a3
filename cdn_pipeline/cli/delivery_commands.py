"""The commands about what the public gets: compare it, switch it off and on, rehearse that, and what it costs."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cdn_pipeline.cli.comparison_metrics import Metric
from cdn_pipeline.cli.errors import explained
from cdn_pipeline.settings import load_settings

app = typer.Typer()
cdn_app = typer.Typer(
    no_args_is_help=True, help="Have the API answer CDN URLs or legacy ones, for all profiles or a percentage of them."
)
app.add_typer(cdn_app, name="cdn")


@app.command()
@explained
def compare(
    sample_size: Annotated[int, typer.Option(help="Pictures, drawn at random of the published ones.", min=1)] = 1000,
    metrics: Annotated[Metric, typer.Option(help="What to compare; `bytes` asks nobody.")] = Metric.ALL,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it down with a plot, as .html or .md.")
    ] = None,
) -> None:
    """Compare the CDN with the legacy source URLs: availability, milliseconds to the first byte, bytes.

    Sources are asked at the rate that all runs share (Instagram: 5 requests a second and host, two for a picture), so
    1,000 pictures of one host take seven minutes. What has expired is not asked for. Exit status 1: nothing is
    published, or the CDN never answered.
    """
    from cdn_pipeline.cli.comparison import compare_cdn

    if not compare_cdn(load_settings(), Console(), sample_size=sample_size, metric=metrics, file=report):
        raise typer.Exit(1)


@cdn_app.command(name="status")
@explained
def show_status() -> None:
    """Show whether the CDN is on and for how many profiles, since when, and who has changed that lately."""
    from cdn_pipeline.cli.switch import cdn_status

    cdn_status(load_settings(), Console())


@cdn_app.command()
@explained
def off(
    minutes: Annotated[
        int | None, typer.Option(help="On again by itself after so many; without it, by `cdn on`.", min=1, max=10_080)
    ] = None,
) -> None:
    """Roll back: the API answers legacy URLs, as long as they live. Stores, queue and runs go on as before."""
    from cdn_pipeline.cli.switch import cdn_off

    cdn_off(load_settings(), Console(), minutes=minutes)


@cdn_app.command()
@explained
def on() -> None:
    """The API answers CDN URLs again, of as many profiles as before."""
    from cdn_pipeline.cli.switch import cdn_on

    cdn_on(load_settings(), Console())


@cdn_app.command()
@explained
def percentage(
    percent: Annotated[int, typer.Argument(metavar="N", help="0 to 100.", min=0, max=100, show_default=False)],
) -> None:
    """The API answers CDN URLs of so many percent of the profiles: always the same ones, and more adds others."""
    from cdn_pipeline.cli.switch import cdn_percentage

    cdn_percentage(load_settings(), Console(), percent)


@app.command(name="rollback-drill")
@explained
def rollback_drill(
    duration: Annotated[
        int,
        typer.Option(help="Seconds after which the CDN is on again, whatever became of the drill.", min=30, max=3600),
    ] = 300,
    verify_legacy_urls: Annotated[
        bool, typer.Option("--verify-legacy-urls", help="Ask for the legacy URLs as well, as downloads do.")
    ] = False,
    api_url: Annotated[str, typer.Option(help="The API that serves this catalog.")] = "http://127.0.0.1:8000",
) -> None:
    """Rehearse a rollback on the running API: switch the CDN off, see legacy URLs answered, switch it on; timed.

    Frontends get legacy URLs meanwhile: some seconds, or as long as the legacy URLs take to verify. Ctrl-C switches on
    again. Exit status 1: something was not as it should be.
    """
    from cdn_pipeline.cli.drill import rehearse

    if not rehearse(
        load_settings(),
        Console(),
        api_url=api_url,
        duration=timedelta(seconds=duration),
        asks_legacy_urls=verify_legacy_urls,
    ):
        raise typer.Exit(1)


@app.command()
@explained
def cost(
    budget: Annotated[
        float | None, typer.Option(help="US dollars a month; without it, MONTHLY_BUDGET_USD.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: the same as JSON.")] = False,
) -> None:
    """Show what the month costs at R2, so far and projected; exit status 1 if that is over the budget."""
    from cdn_pipeline.cli.cost import show_cost

    if not show_cost(load_settings(), Console(), budget=budget, as_json=as_json):
        raise typer.Exit(1)
