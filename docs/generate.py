"""Writes the generated parts of docs/architecture.md: the diagram of the tables and the two state machines.

make docs
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa

from cdn_pipeline.catalog.tables import metadata
from cdn_pipeline.queue.states import IMAGE_TRANSITIONS, JOB_TRANSITIONS

PAGE = Path(__file__).with_name("architecture.md")


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


def page(text: str) -> str:
    """The page with its generated parts written anew."""
    parts = {
        "erd": erd(),
        "image states": states(IMAGE_TRANSITIONS, next(iter(IMAGE_TRANSITIONS))),
        "job states": states(JOB_TRANSITIONS, next(iter(JOB_TRANSITIONS))),
    }
    for name, diagram in parts.items():
        before, found, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, closing, after = rest.partition("<!-- end -->")
        if not (found and closing):
            raise SystemExit(f"{PAGE} has no place for {name!r}")
        text = f"{before}{found}```mermaid\n{diagram}\n```\n{closing}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
