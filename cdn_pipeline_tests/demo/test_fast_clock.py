from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.demo import fast_clock


@pytest.fixture
def movable(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    migrate(engine, "https://cdn.example")
    yield engine
    engine.dispose()


def test_a_moved_clock_moves_queries_and_column_defaults(movable: sa.Engine) -> None:
    fast_clock.set_offset(movable, timedelta(days=-14))
    with movable.begin() as connection:
        now, clock = connection.execute(sa.text("SELECT now(), clock_timestamp()")).one()
        connection.execute(
            sa.text("INSERT INTO cdn_rollouts (collection, recipe, recipe_version) VALUES ('a', 'b', 1)")
        )
        started_at = connection.scalar(sa.text("SELECT started_at FROM cdn_rollouts"))
    assert started_at == now
    for moment in (now, clock):
        assert abs(datetime.now(UTC) - timedelta(days=14) - moment) < timedelta(minutes=1)


def test_the_catalogs_tables_stay_where_they_belong(movable: sa.Engine) -> None:
    with movable.connect() as connection:
        schemas = connection.scalars(sa.text("SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'cdn_%'"))
        assert list(schemas) == ["public"]
