"""Results: what a benchmark measured, kept as JSON beside it, shown as the tables of docs/performance.md.

Every benchmark makes one `Section` of `Figure`s. `keep` writes it with the machine, the versions and the day it was
measured on to `benchmarks/results/`, from where `make docs` puts it into docs/performance.md.
"""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
from PIL import features

RESULTS = Path(__file__).parent / "results"
_VERSIONS_TOLD = ("dagster", "pillow", "sqlalchemy", "psycopg", "obstore", "httpx", "aiohttp")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and how it varied: `values` has one per round, in `unit` (none: a ratio).

    A figure with a goal (`at_least` or `at_most`) stands in the headline table. It is met by the median.
    """

    name: str
    values: tuple[float, ...]
    unit: str = ""
    decimals: int = 2
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def has_goal(self) -> bool:
        """Whether this is one of the headline's figures."""
        return self.at_least is not None or self.at_most is not None

    @property
    def reached(self) -> bool:
        """Whether the median is as good as the goal, or there is none."""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= self.median <= high

    @property
    def goal(self) -> str:
        """The goal in words, empty if there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def __str__(self) -> str:
        """Median (lowest to highest) unit."""
        unit = f" {self.unit}" if self.unit else ""
        middle = self._written(self.median)
        if len(self.values) == 1:
            return f"{middle}{unit}"
        return f"{middle} ({self._written(min(self.values))} to {self._written(max(self.values))}){unit}"

    def _written(self, value: float) -> str:
        return f"{value:,.{self.decimals}f}"


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark measured.

    `name` is the file's and the section's in docs/performance.md; `command` reproduces it; `notes` are whole sentences
    that the numbers need; `versions` are of what was measured besides the project's own parts.
    """

    name: str
    title: str
    command: str
    figures: Sequence[Figure]
    notes: Sequence[str] = ()
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """A section as it was kept: with where and when."""

    section: Section
    measured_on: str
    machine: str
    versions: dict[str, str]


def show(section: Section) -> str:
    """The section's table in Markdown, with its notes."""
    rows = ["| what | median (lowest to highest) | goal |", "|---|---|---|"]
    for figure in section.figures:
        name, value = (f"**{text}**" if figure.has_goal else text for text in (figure.name, str(figure)))
        rows.append(f"| {name} | {value} | {figure.goal} |")
    return "\n".join([*rows, *(f"\n{note}" for note in section.notes)])


def headline(kept: Iterable[Kept]) -> str:
    """One table of every figure that has a goal, in Markdown."""
    rows = ["| what | measured | goal | reached |", "|---|---|---|---|"]
    for each in kept:
        for figure in filter(lambda figure: figure.has_goal, each.section.figures):
            what = f"[{each.section.title}](#{each.section.name}): {figure.name}"
            rows.append(f"| {what} | {figure} | {figure.goal} | {'yes' if figure.reached else '**no**'} |")
    return "\n".join(rows)


def details(kept: Kept) -> str:
    """A chapter: the section with its command, and where and when it was measured."""
    section = kept.section
    command = section.command.removeprefix(".venv/bin/")
    versions = ", ".join(f"{name} {number}" for name, number in kept.versions.items())
    measured = f"`.venv/bin/{command}`, {kept.measured_on}, {kept.machine}:"
    parts = (f'<a id="{section.name}"></a>', f"### {section.title}", measured, show(section), f"<sub>{versions}</sub>")
    return "\n\n".join(parts)


def keep(section: Section) -> None:
    """Prints the section, and writes it where `make docs` finds it."""
    print(f"## {section.title}\n\n{show(section)}\n")
    own = {name: version(name) for name in _VERSIONS_TOLD}
    versions = {"Python": platform.python_version(), **own, "libwebp": str(features.version("webp"))}
    kept = Kept(section, f"{datetime.now(UTC):%Y-%m-%d}", machine(), {**versions, **section.versions})
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(asdict(kept), indent=2, ensure_ascii=False)
    (RESULTS / f"{section.name}.json").write_text(f"{text}\n")


def load_all(names: Iterable[str]) -> list[Kept]:
    """What was kept of those of these sections that were ever measured."""
    return [load(name) for name in names if (RESULTS / f"{name}.json").exists()]


def load(name: str) -> Kept:
    """What was kept of the section of that name."""
    values = json.loads((RESULTS / f"{name}.json").read_text())
    section = values.pop("section")
    figures = [Figure(**{**figure, "values": tuple(figure["values"])}) for figure in section.pop("figures")]
    return Kept(Section(figures=figures, **section), **values)


def machine() -> str:
    """Processor, cores and memory of this machine."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
