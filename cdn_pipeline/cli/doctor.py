"""`cdn-pipeline doctor`: what is wrong with a deployment, and what to do about it."""

from collections import Counter
from collections.abc import Sequence

import pydantic_core
from rich.console import Console
from rich.table import Table

from cdn_pipeline.cli.sections import as_text, print_lines
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.examination import Checked, examine
from cdn_pipeline.observe.doctor.findings import State

_SIGNS = {State.OK: "✓", State.WARNING: "!", State.FAILED: "✗", State.SKIPPED: "–"}
_STYLES = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}
_NAME_WIDTH = 18


def examine_deployment(console: Console, *, ask_provider: bool, as_json: bool) -> bool:
    """Makes all checks and shows what they find; returns whether none has failed."""
    with Deployment(ask_provider=ask_provider) as deployment:
        done: list[Checked] = []
        for checked in examine(deployment):
            done.append(checked)
            if not as_json:
                _print(console, checked)
    if as_json:
        print(_as_json(done))  # noqa: T201  # unwrapped and without colour
    else:
        _print_conclusion(console, done)
    return _failures(done) == 0


def _failures(done: Sequence[Checked]) -> int:
    return sum(checked.finding.state is State.FAILED for checked in done)


def _as_json(done: Sequence[Checked]) -> str:
    """One object: whether nothing has failed, and every check in order."""
    checks = [
        {
            "name": checked.name,
            "state": checked.finding.state,
            "words": checked.finding.words,
            "cure": checked.finding.cure,
            "paste": checked.finding.paste,
        }
        for checked in done
    ]
    return pydantic_core.to_json({"passed": _failures(done) == 0, "checks": checks}, indent=2).decode()


def _print(console: Console, checked: Checked) -> None:
    finding = checked.finding
    style = _STYLES[finding.state]
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1, style=style)
    grid.add_column(width=_NAME_WIDTH, style=style)
    grid.add_column(overflow="fold")
    grid.add_row(_SIGNS[finding.state], checked.name, as_text(finding.words))
    if finding.cure:
        grid.add_row("", "", as_text(f"→ {finding.cure}", style))
    console.print(grid)
    print_lines(console, finding.paste)


def _print_conclusion(console: Console, done: Sequence[Checked]) -> None:
    counts = Counter(checked.finding.state for checked in done)
    told = ", ".join(f"{state}: {counts[state]}" for state in State if counts[state])
    console.print()
    if counts[State.FAILED]:
        console.print(
            as_text(f"{told}. Mend what has failed, from the top, and run this again.", _STYLES[State.FAILED])
        )
    else:
        console.print(as_text(f"{told}. Nothing stands in the way of a run.", _STYLES[State.OK]))
