"""How facts look on a terminal: titled sections of labels and values, and tables without lines."""

from collections.abc import Iterable, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

Fact = tuple[str, str | Text]

_LABEL_WIDTH = 12
_INDENT = 2
_TAIL = 24  # characters of a shortened URL's end: its expiry


def print_facts(console: Console, title: str, facts: Iterable[Fact]) -> None:
    """A title, and under it a line per fact: its label and its value, wrapped with a hanging indent."""
    grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=True)
    grid.add_column(width=_INDENT - 1)
    grid.add_column(style="dim", width=_LABEL_WIDTH)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row("", label, as_text(value))
    print_title(console, title)
    console.print(grid)


def print_title(console: Console, title: str) -> None:
    """The title of a section, after a blank line."""
    console.print()
    console.print(as_text(title, style="bold"))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Lines that a person copies: indented, and left to the terminal to wrap."""
    for line in lines:
        console.print(as_text(" " * _INDENT + line), soft_wrap=True)


def new_table(*columns: str, numbers: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without lines; the columns named in `numbers` are aligned to the right, those in `whole` never wrap."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("", width=_INDENT - 2)
    for column in columns:
        justify: JustifyMethod = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    return table


def add_row(table: Table, *cells: str | Text | int | None) -> None:
    """A row of a `new_table`; what has no value is shown as nothing."""
    table.add_row("", *map(_as_cell, cells))


def _as_cell(value: str | Text | int | None) -> Text:
    if isinstance(value, int):
        return as_text(f"{value:,}")
    return as_text("" if value is None else value)


def value_width(console: Console) -> int:
    """The characters that a fact's value has on one line."""
    return max(console.width - _INDENT - _LABEL_WIDTH - 2, 20)


def shortened(url: str, width: int) -> str:
    """The URL with its middle left out, so that it fits."""
    if len(url) <= width:
        return url
    return f"{url[: max(width - _TAIL - 1, 1)]}…{url[-_TAIL:]}"


def counted(count: int, noun: str) -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def as_text(words: str | Text, style: str = "") -> Text:
    """Words as they are: what stands in brackets is no markup."""
    return words if isinstance(words, Text) else Text(words, style=style)
