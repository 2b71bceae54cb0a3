from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo import app_database as demo
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.engine.due_work import DatabaseUnreachableError, DueWork, look_for_due_work
from cdn_pipeline.queue.leases import Run
from cdn_pipeline.queue.watermarks import read_watermarks
from cdn_pipeline.sources.app_database import SourceSchemaError, shard_of
from cdn_pipeline.sources.changes import Watermark
from cdn_pipeline_tests.queue.catalogs import session, take

SIGNER = Signer("http://127.0.0.1:8100", "secret")


@pytest.fixture
def source(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    demo.create_tables(engine)
    fast_clock.install(engine)
    yield engine
    engine.dispose()


def look(source: sa.Engine, catalog: sa.Engine) -> DueWork:
    return look_for_due_work(source, catalog, INSTAGRAM)


def read_everything(source: sa.Engine, catalog: sa.Engine) -> None:
    list(discover(source, catalog, INSTAGRAM, SHARDS))


def watermarks(catalog: sa.Engine) -> dict[str, Watermark]:
    with session(catalog) as connection:
        return read_watermarks(connection, INSTAGRAM)


def test_in_the_beginning_every_shard_is_to_be_read(source: sa.Engine, catalog: sa.Engine) -> None:
    work = look(source, catalog)
    assert work.changed == frozenset(SHARDS)
    assert (work.demands, work.source_read_until) == ({}, None)
    assert watermarks(catalog) == {}


def test_what_was_found_is_due_and_a_new_row_is_a_change(source: sa.Engine, catalog: sa.Engine) -> None:
    first = demo.add_profile(source, SIGNER, seed=1, posts=0)
    read_everything(source, catalog)
    second = demo.add_profile(source, SIGNER, seed=2, posts=0)
    work = look(source, catalog)
    assert {shard: demand.due for shard, demand in work.demands.items()} == {shard_of(first): 1}
    assert work.changed == {shard_of(second)}
    assert work.source_read_until == max(mark.scanned_at for mark in watermarks(catalog).values())


def test_what_a_dead_run_had_in_hand_is_due_again(source: sa.Engine, catalog: sa.Engine) -> None:
    profile_id = demo.add_profile(source, SIGNER, seed=1, posts=0)
    read_everything(source, catalog)
    with session(catalog) as connection:
        registered = "INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES ('killed', 1, 'here:1')"
        connection.execute(sa.text(registered))
        assert len(take(connection, Run("killed", "here:1"))) == 1
    work = look(source, catalog)
    assert work.demands[shard_of(profile_id)].due == 1


def test_watermarks_of_quiet_shards_follow_the_clock_and_changed_ones_stay(
    source: sa.Engine, catalog: sa.Engine
) -> None:
    read_everything(source, catalog)
    before = watermarks(catalog)
    look(source, catalog)
    assert watermarks(catalog) == before

    later = timedelta(minutes=11)
    fast_clock.set_offset(source, later)
    with source.connect() as connection:
        now = connection.execute(sa.text("SELECT now()")).scalar_one()
    changed = shard_of(demo.add_profile(source, SIGNER, seed=1, posts=0, now=now))
    assert look(source, catalog).changed == {changed}
    after = watermarks(catalog)
    assert after.pop(changed) == before.pop(changed)
    assert (
        min(mark.scanned_at for mark in after.values()) >= max(mark.scanned_at for mark in before.values()) + later / 2
    )
    assert look(source, catalog).changed == {changed}


def test_a_late_commit_is_noticed_after_the_watermark_has_followed_the_clock(
    source: sa.Engine, catalog: sa.Engine
) -> None:
    profile_id = demo.add_profile(source, SIGNER, seed=1, posts=0)
    read_everything(source, catalog)
    fast_clock.set_offset(source, timedelta(minutes=11))
    with source.connect() as late:
        to_now = sa.text("UPDATE profiles SET updated_at = now() WHERE id = :id")
        late.execute(to_now, {"id": profile_id})
        assert look(source, catalog).changed == frozenset()
        late.commit()
    assert look(source, catalog).changed == {shard_of(profile_id)}


def unreachable() -> sa.Engine:
    return sa.create_engine("postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nothing")


def test_a_database_that_does_not_answer_is_named_by_its_variable(source: sa.Engine, catalog: sa.Engine) -> None:
    with pytest.raises(DatabaseUnreachableError, match=r"the catalog \(CATALOG_DATABASE_URL\) does not answer: .+"):
        look(source, unreachable())
    with pytest.raises(DatabaseUnreachableError, match="SOURCE_DATABASE_URL") as caught:
        look(unreachable(), catalog)
    assert "hunter2" not in str(caught.value)


def test_a_source_without_its_tables_is_told_with_advice(source: sa.Engine, catalog: sa.Engine) -> None:
    demo.drop_tables(source)
    with pytest.raises(SourceSchemaError, match="SOURCE_DATABASE_URL"):
        look(source, catalog)
