"""Writes the generated parts of the docs: tables, state machines, kinds of failure, the API's reference.

make docs
"""

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa
from api_reference import reference

from cdn_pipeline.catalog.tables import metadata
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.states import IMAGE_TRANSITIONS, JOB_TRANSITIONS

DOCS = Path(__file__).parent
sys.path.append(str(DOCS.parent))  # benchmarks are not installed

from benchmarks.report import details, headline, load_all  # noqa: E402

MEASURED = (
    *("codec", "sharp", "img2dataset", "celery", "quiet-night", "growth", "memory", "overhead", "network-bound"),
    *("stages", "resamplers", "quality"),
)


def erd() -> str:
    """The catalog's tables as a Mermaid entity-relationship diagram."""
    lines = ["erDiagram"]
    for table in metadata.sorted_tables:
        lines += [f"    {table.name} {{", *(f"        {_column(column)}" for column in table.columns), "    }"]
    for table in metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            lines.append(f"    {key.column.table.name} ||--o{{ {table.name} : {key.parent.name}")
    return "\n".join(lines)


def _column(column: sa.Column[object]) -> str:
    kind = str(column.type).split("(")[0].lower().replace(" ", "_").replace("[]", "_array")
    marks = ["PK"] * column.primary_key + ["FK"] * bool(column.foreign_keys)
    return f"{kind} {column.name} {','.join(marks)}".rstrip()


def states(transitions: Mapping[StrEnum, frozenset[StrEnum]], first: StrEnum) -> str:
    """A state machine as a Mermaid diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {source} --> {target}" for source, targets in transitions.items() for target in sorted(targets)]
    return "\n".join(lines)


def failure_kinds() -> str:
    """The table of failures."""
    lines = ["| kind | tried again | look at | what to do |", "|---|---|---|---|"]
    again = {"transient": "by itself", "fresh_url": "with a fresh URL", "permanent": "no"}
    lines += [f"| `{kind}` | {again[kind.remedy]} | {kind.blame} | {kind.advice} |" for kind in FailureKind]
    return "\n".join(lines)


def _mermaid(diagram: str) -> str:
    return f"```mermaid\n{diagram}\n```"


def page(name: str) -> str:
    """The page of that name, with its generated parts written anew."""
    text = (DOCS / name).read_text()
    for part, written in _PARTS[name].items():
        before, found, rest = text.partition(f"<!-- generated: {part} -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not (found and closing):
            raise SystemExit(f"{name} has no place for {part!r}")
        text = f"{before}{found}{written}\n{closing}{after}"
    return text


_PARTS: Mapping[str, Mapping[str, str]] = {
    "architecture.md": {
        "erd": _mermaid(erd()),
        "image states": _mermaid(states(IMAGE_TRANSITIONS, next(iter(IMAGE_TRANSITIONS)))),
        "job states": _mermaid(states(JOB_TRANSITIONS, next(iter(JOB_TRANSITIONS)))),
    },
    "performance.md": {
        "headline": headline(load_all(MEASURED)),
        "details": "\n\n".join(map(details, load_all(MEASURED))),
    },
    "runbook.md": {"failure kinds": failure_kinds()},
    "api.md": {"reference": reference()},
}
PAGES = tuple(_PARTS)


if __name__ == "__main__":
    for name in PAGES:
        (DOCS / name).write_text(page(name))
