"""Whatever `benchmarks.growth` measures finds its rows by an index, so that it does not grow with the catalog.

The plans are those of the statements that the project's own functions execute, asked for where they execute them: with
their parameters, as Postgres plans a statement's first executions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks import growth
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.orchestration import sensors

IMAGES = 20_000
BIG = {"cdn_image_assets", "cdn_image_jobs", "cdn_image_renditions", "profiles", "posts"}

Node = dict[str, Any]


@pytest.fixture(scope="module")
def filled(postgres_server: EmbeddedPostgres) -> Iterator[growth.Catalog]:
    """A catalog whose pages are so many that reading all of them is never cheapest for a few."""
    with growth.opened(postgres_server, IMAGES) as catalog:
        yield catalog


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch, filled: growth.Catalog) -> Iterator[None]:
    monkeypatch.setattr(growth, "REPEATS", 1)
    monkeypatch.setattr(growth, "LOOK_UPS", 1)
    monkeypatch.setattr(growth, "ROWS_SEEN_AGAIN", 1)  # of one shard, then
    for variable in ("CATALOG_DATABASE_URL", "SOURCE_DATABASE_URL"):
        monkeypatch.setenv(variable, filled.url)
    yield
    sensors._databases.close()


@contextmanager
def planned() -> Iterator[dict[str, list[Node]]]:
    """The plans of all statements that anybody executes within the block: all nodes, by statement."""
    plans: dict[str, list[Node]] = {}

    def explain(connection: sa.Connection, _: Any, statement: str, parameters: Any, *more: Any) -> None:
        is_ours = connection.dialect.name == "postgresql"  # Dagster's storage is SQLite
        if is_ours and statement.split(None, 1)[0] in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE"}:
            cursor = connection.connection.cursor()
            cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
            ((found,),) = cursor.fetchall()
            cursor.close()
            plans.setdefault(statement, []).extend(_nodes(found[0]["Plan"]))

    sa.event.listen(sa.Engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", explain)


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def read_whole(plans: dict[str, list[Node]]) -> list[str]:
    """The statements that read every row of a big table."""
    return [
        statement
        for statement, nodes in plans.items()
        if any(node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG for node in nodes)
    ]


@pytest.mark.parametrize("operation", growth.OPERATIONS, ids=lambda operation: operation.__name__)
def test_nothing_that_is_measured_reads_a_whole_table(filled: growth.Catalog, operation: Any) -> None:
    with planned() as plans:
        operation(filled)
    assert read_whole(plans) == []
