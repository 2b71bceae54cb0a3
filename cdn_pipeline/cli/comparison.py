"""`cdn-pipeline compare`: the CDN against the source URLs that it stands in for, told and written down."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.comparison_metrics import Metric
from cdn_pipeline.cli.reports import Report, Section, Table, require_format
from cdn_pipeline.cli.sections import add_row, as_text, counted, new_table, print_title
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.comparison import Compared, Outcome, Sample, compare, draw_sample, source_bases
from cdn_pipeline.observe.comparison_figures import Figures, Side, figures_of, percentiles_of
from cdn_pipeline.observe.plots import Series, cumulative_plot
from cdn_pipeline.observe.times import clock
from cdn_pipeline.settings import Settings


def compare_cdn(settings: Settings, console: Console, *, sample_size: int, metric: Metric, file: Path | None) -> bool:
    """Compares a sample, and writes a report if there is a file for it; returns whether the CDN answered at all."""
    if file is not None:
        require_format(file)  # before thousands of requests
    with open_catalog(settings) as engine:
        with engine.connect() as connection:
            sample = draw_sample(connection, INSTAGRAM, sample_size)
        if not sample.pairs:
            console.print("Nothing is published yet: run `publish_images` first.")
            return False
        compared = [] if metric is Metric.BYTES else asyncio.run(_ask(settings, engine, console, sample))
    sizes = sorted(INSTAGRAM.recipe.sizes, key=lambda size: size.width * size.height, reverse=True)
    figures = figures_of(sample, compared, [size.name for size in sizes])
    report = _report(settings, figures, metric, _hints(settings, figures, source_bases(sample.pairs)))
    _print(console, report)
    if file is not None:
        report.write(file)
        console.print()
        console.print(as_text(f"Written to {file}, with the plot." if compared else f"Written to {file}."))
    return not figures.cdn.is_silent


async def _ask(settings: Settings, engine: sa.Engine, console: Console, sample: Sample) -> Sequence[Compared]:
    compared: list[Compared] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("asking the CDN and the sources", total=len(sample.pairs))
        async for each in compare(settings, engine, INSTAGRAM, sample.pairs):
            compared.append(each)
            progress.update(bar, advance=1)
    return compared


def _hints(settings: Settings, figures: Figures, sources: Sequence[str]) -> Iterator[str]:
    """What to look at where a side answers nothing at all: then the figures tell of nobody's pictures."""
    if figures.cdn.is_silent:
        start = " (`make dev` or `make serve` starts it)" if settings.objects_url.startswith("file:") else ""
        yield f"No answer from any URL of the CDN: is it running at {settings.public_base_url}{start}?"
    if figures.legacy.is_silent:
        start = " (`make dev` starts the demo's)" if settings.embedded_source else ""
        yield f"No answer from any legacy URL: is the origin running at {sources[0]}{start}?"


def _report(settings: Settings, figures: Figures, metric: Metric, hints: Iterable[str]) -> Report:
    sections = {
        Metric.AVAILABILITY: _availability,
        Metric.LATENCY: _latency,
        Metric.BYTES: _bytes,
    }
    return Report(
        "CDN against legacy source URLs",
        [
            f"{counted(figures.drawn, 'picture')} drawn at random of {figures.published:,} published ones, "
            f"{clock(figures.drawn_at)}. The CDN is {settings.public_base_url}.",
            *hints,
        ],
        [section(figures) for name, section in sections.items() if metric in (Metric.ALL, name)],
    )


def _availability(figures: Figures) -> Section:
    return Section(
        "Availability",
        [
            "Each picture was asked for twice at both places. The CDN's has to be the very bytes that were published; "
            "of a source, any picture counts. URLs that say themselves that they have expired are not available, and "
            "were not asked for; pictures whose host is left alone just now are in no rate."
        ],
        Table(
            ["from", *Outcome, "judged (n)", "available (%)"],
            [_availability_row(side) for side in (figures.cdn, figures.legacy)],
        ),
    )


def _availability_row(side: Side) -> Sequence[str]:
    share = "–" if side.availability is None else f"{100 * side.availability:.1f}"
    return [side.name, *(f"{side.outcomes.get(outcome, 0):,}" for outcome in Outcome), f"{side.judged:,}", share]


def _latency(figures: Figures) -> Section:
    curves = [
        Series(f"{side.name}, {kind}", values)
        for side in (figures.cdn, figures.legacy)
        for kind, values in (("cold", side.cold_ms), ("warm", side.warm_ms))
    ]
    return Section(
        "Latency: milliseconds to the first byte",
        [
            "Of available pictures, from this machine, over HTTP/1.1: cold on a new connection with DNS, TCP and TLS, "
            "warm on one that was open. The largest rendition stands against whatever size the source has."
        ],
        Table(["from", "n", "p50", "p95", "p99"], [_latency_row(curve) for curve in curves]),
        cumulative_plot(curves, title="Share of pictures whose first byte came within so many ms", unit="ms"),
    )


def _latency_row(curve: Series) -> Sequence[str]:
    found = percentiles_of(curve.values)
    if found is None:
        return [curve.name, "0", "–", "–", "–"]
    return [curve.name, f"{found.n:,}", *(f"{value:.1f}" for value in (found.p50, found.p95, found.p99))]


def _bytes(figures: Figures) -> Section:
    original = next((sizes for sizes in figures.sizes if sizes.name == "original"), None)
    return Section(
        "Bytes per picture",
        ["As the catalog knows them: what sources sent when the picture was downloaded, and each published size."],
        Table(
            ["picture", "n", "mean", "median", "of the original (%)"],
            [
                [
                    each.name,
                    f"{each.n:,}",
                    decimal(round(each.mean)),
                    decimal(round(each.median)),
                    f"{100 * each.mean / original.mean:.0f}" if original and original.mean else "–",
                ]
                for each in figures.sizes
            ],
        ),
    )


def _print(console: Console, report: Report) -> None:
    for words in report.words:
        console.print(as_text(words))
    for section in report.sections:
        print_title(console, section.title)
        if section.table:
            table = new_table(*section.table.head, numbers=section.table.head[1:])
            for row in section.table.rows:
                add_row(table, *row)
            console.print(table)
