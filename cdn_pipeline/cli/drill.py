"""`cdn-pipeline rollback-drill`: a rollback, rehearsed and timed."""

from contextlib import closing
from datetime import timedelta

from rich.console import Console
from rich.text import Text

from cdn_pipeline.catalog.sessions import open_catalog
from cdn_pipeline.cli.actor import actor
from cdn_pipeline.cli.sections import as_text
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rollback_drill import LIMIT_SECONDS, RollbackDrill, Step


def rehearse(
    settings: Settings, console: Console, *, api_url: str, duration: timedelta, asks_legacy_urls: bool
) -> bool:
    """Rehearses a rollback and tells every step; returns whether all was as it should be."""
    console.print(
        as_text(
            f"The drill switches the CDN off; after {duration.total_seconds():.0f} s at the latest it is on by itself."
        )
    )
    steps: list[Step] = []
    with open_catalog(settings) as engine:
        drill = RollbackDrill(
            settings,
            engine,
            INSTAGRAM,
            api_url=api_url,
            actor=actor(),
            duration=duration,
            asks_legacy_urls=asks_legacy_urls,
        )
        with closing(drill.run()) as done:  # type: ignore[type-var]
            for step in done:
                steps.append(step)
                console.print(_line(step))
    passed = all(step.passed for step in steps)
    verdict = f"a rollback takes less than {LIMIT_SECONDS // 60} minutes, caches included" if passed else "see above"
    console.print(
        Text("Passed: " if passed else "Failed: ", style="bold green" if passed else "bold red").append(verdict)
    )
    return passed


def _line(step: Step) -> Text:
    mark = Text("✓ " if step.passed else "✗ ", style="green" if step.passed else "bold red")
    return mark.append(f"{step.name:<18} {step.seconds:6.2f} s  {step.words}", style="default")
