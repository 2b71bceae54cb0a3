"""Reports that outlive the terminal: Markdown, or a page of HTML that needs nothing beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from cdn_pipeline.settings import ConfigurationError


@dataclass(frozen=True, slots=True)
class Table:
    """A head and its rows; the first column names what the others count."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part: sentences, then a table and a plot (SVG) if it has them."""

    title: str
    words: Sequence[str] = ()
    table: Table | None = None
    plot: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A title, what it is of, and its sections."""

    title: str
    words: Sequence[str]
    sections: Sequence[Section] = field(default=())

    def write(self, file: Path) -> None:
        """Writes it as the file's name ends.

        Raises:
            ConfigurationError: in neither `.html` nor `.md`.
            OSError: the file cannot be written.
        """
        file.write_text(_FORMATS[require_format(file)](self), encoding="utf-8")


def require_format(file: Path) -> str:
    """How the file's name ends.

    Raises:
        ConfigurationError: not in a format that reports have.
    """
    if file.suffix not in _FORMATS:
        raise ConfigurationError(f"a report is written as {' or '.join(_FORMATS)}, not {file.name}: change its name")
    return file.suffix


def as_markdown(report: Report) -> str:
    """The report as Markdown; plots stand in it as SVG."""
    parts = [f"# {report.title}", *report.words]
    for section in report.sections:
        parts += [f"## {section.title}", *section.words]
        if section.table:
            rows = [section.table.head, ["---"] + ["---:"] * (len(section.table.head) - 1), *section.table.rows]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        if section.plot:
            parts.append(section.plot)
    return "\n\n".join(parts) + "\n"


def as_html(report: Report) -> str:
    """The report as a page."""
    body = [f"<h1>{escape(report.title)}</h1>", *_paragraphs(report.words)]
    for section in report.sections:
        body += [f"<h2>{escape(section.title)}</h2>", *_paragraphs(section.words)]
        if section.table:
            body.append(_html_table(section.table))
        if section.plot:
            body.append(f"<figure>{section.plot}</figure>")
    return _PAGE.format(title=escape(report.title), body="\n".join(body))


def _paragraphs(words: Sequence[str]) -> Sequence[str]:
    return [f"<p>{escape(sentence)}</p>" for sentence in words]


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .75rem .25rem 0; text-align: right; font-variant-numeric: tabular-nums; }}
th[scope=row], th:first-child {{ text-align: left; font-weight: normal; }}
figure {{ margin: 1rem 0; }}
svg {{ width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_FORMATS = {".html": as_html, ".md": as_markdown}
