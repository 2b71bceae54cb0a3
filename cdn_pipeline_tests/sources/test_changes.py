"""What counts as changed since the last reading, on a real Postgres: its clock, its visibility, its indexes."""

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.demo.app_database import create_tables, posts_table, profiles_table
from cdn_pipeline.sources import changes
from cdn_pipeline.sources.app_database import SourceSchemaError, shard_bounds, shard_of
from cdn_pipeline.sources.changes import (
    FORGOTTEN,
    OVERLAP,
    SourceRow,
    Watermark,
    changed_shards,
    marks_of_now,
    missing_rows,
    read_changed_references,
)

FOLDER = "https://scontent.cdninstagram.com/v/t51.2885-15"
SECOND = timedelta(seconds=1)


@pytest.fixture
def engine(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    create_tables(engine)
    yield engine
    engine.dispose()


def clock(engine: sa.Engine) -> datetime:
    with engine.connect() as connection:
        now: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return now


def profile_in(shard: str) -> uuid.UUID:
    return uuid.UUID(int=shard_bounds(shard, shard)[0].int + uuid.uuid4().int % 2**64)


def profile_row(shard: str, updated_at: datetime | None) -> dict[str, Any]:
    url = f"{FOLDER}/{uuid.uuid4().hex}_n.jpg?oe=6F000000"
    return {"id": profile_in(shard), "username": "u", "profile_pic_url_hd": url, "updated_at": updated_at}


def add_profile(engine: sa.Engine, shard: str, updated_at: datetime | None) -> uuid.UUID:
    row = profile_row(shard, updated_at)
    with engine.begin() as connection:
        connection.execute(profiles_table.insert(), row)
    profile_id: uuid.UUID = row["id"]
    return profile_id


def add_post(engine: sa.Engine, profile_id: uuid.UUID, updated_at: datetime | None) -> uuid.UUID:
    post_id = uuid.uuid4()
    row = {"id": post_id, "profile_id": profile_id, "media_id": "1", "display_url": f"{FOLDER}/{post_id.hex}_n.jpg"}
    with engine.begin() as connection:
        connection.execute(
            posts_table.insert(), row | {"taken_at": updated_at or clock(engine), "updated_at": updated_at}
        )
    return post_id


def touch(engine: sa.Engine, table: sa.Table, row_id: uuid.UUID, updated_at: datetime) -> None:
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id == row_id).values(updated_at=updated_at))


def changed(engine: sa.Engine, watermarks: Mapping[str, Watermark]) -> set[str]:
    return set(changed_shards(engine, watermarks).changed)


def read(engine: sa.Engine, watermarks: Mapping[str, Watermark]) -> list[uuid.UUID]:
    """The profiles that are read, in order."""
    batches = read_changed_references(engine, watermarks)
    owners = [uuid.UUID(reference.owner_id) for batch in batches for reference in batch.references]
    return list(dict.fromkeys(owners))


# -- changed shards --


def test_shards_without_a_watermark_have_changed(engine: sa.Engine) -> None:
    marks = marks_of_now(engine)
    assert changed(engine, {}) == set(SHARDS)
    assert changed(engine, {shard: marks[shard] for shard in SHARDS[1:]}) == {"00"}
    assert changed(engine, marks) == set()


def test_a_new_profile_and_a_new_post_change_their_profiles_shard(engine: sa.Engine) -> None:
    old = add_profile(engine, "3f", clock(engine) - timedelta(days=1))
    marks = marks_of_now(engine)
    add_profile(engine, "00", clock(engine))
    assert changed(engine, marks) == {"00"}
    add_post(engine, old, clock(engine))
    assert changed(engine, marks) == {"00", "3f"}
    assert changed(engine, marks_of_now(engine)) == set()


@given(st.uuids())
def test_sql_and_python_agree_on_the_shard(engine_of_the_module: sa.Engine, profile_id: uuid.UUID) -> None:
    with engine_of_the_module.connect() as connection:
        found = connection.scalar(sa.text(f"SELECT {changes._shard_of(':id')}"), {"id": profile_id})
    assert found == shard_of(profile_id)


@pytest.fixture(scope="module")
def engine_of_the_module(postgres_server: Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(postgres_server.url("postgres"))
    yield engine
    engine.dispose()


def test_a_row_that_is_committed_after_the_scan_is_noticed_although_it_is_older(engine: sa.Engine) -> None:
    """Its `updated_at` lies before the watermark, because its transaction began before the scan."""
    add_profile(engine, "05", clock(engine) - SECOND)
    with engine.connect() as late:
        late.execute(profiles_table.insert(), profile_row("05", clock(engine)))
        marks = marks_of_now(engine)
        assert changed(engine, marks) == set()
        assert len(read(engine, {"05": marks["05"]})) == 1
        late.commit()
    assert changed(engine, marks) == {"05"}
    assert len(read(engine, {"05": marks["05"]})) == 2
    assert changed(engine, marks_of_now(engine)) == set()


def test_a_row_committed_between_the_mark_and_the_reading_is_read_once_more_at_worst(engine: sa.Engine) -> None:
    marks = marks_of_now(engine)
    add_profile(engine, "05", marks["05"].scanned_at - SECOND)
    assert changed(engine, marks) == {"05"}


def test_rows_that_were_counted_do_not_change_a_shard_again(engine: sa.Engine) -> None:
    profile_id = add_profile(engine, "05", clock(engine) - OVERLAP / 2)
    add_post(engine, profile_id, clock(engine) - SECOND)
    marks = marks_of_now(engine)
    assert marks["05"].recent_rows == 2
    assert changed(engine, marks) == set()
    touch(engine, profiles_table, profile_id, clock(engine))
    assert changed(engine, marks) == {"05"}


def test_a_row_of_the_future_counts_when_its_time_has_come(engine: sa.Engine) -> None:
    fast_clock.install(engine)
    add_profile(engine, "05", clock(engine) + timedelta(minutes=30))
    marks = marks_of_now(engine)
    assert marks["05"].recent_rows == 0
    assert changed(engine, marks) == set()
    fast_clock.set_offset(engine, timedelta(minutes=31))
    assert changed(engine, marks) == {"05"}
    assert changed(engine, marks_of_now(engine)) == set()


def test_a_shard_that_nobody_looked_at_for_long_has_changed_without_a_look(engine: sa.Engine) -> None:
    marks = marks_of_now(engine)
    long_ago = clock(engine) - FORGOTTEN
    assert changed(engine, {**marks, "05": Watermark(long_ago, 0)}) == {"05"}


def test_a_watermark_of_the_future_is_of_another_clock_and_says_nothing(engine: sa.Engine) -> None:
    marks = marks_of_now(engine)
    assert changed(engine, {**marks, "05": Watermark(clock(engine) + timedelta(days=1), 0)}) == {"05"}


def test_rows_without_a_time_are_left_to_scans_of_everything(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE profiles ALTER updated_at DROP NOT NULL"))
    marks = marks_of_now(engine)
    add_profile(engine, "05", None)
    assert changed(engine, marks) == set()
    assert read(engine, marks) == []


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_times_without_a_zone_are_utc_whatever_zone_the_database_has(engine: sa.Engine, zone: str) -> None:
    with engine.begin() as connection:
        database = connection.scalar(sa.text("SELECT quote_ident(current_database())"))
        connection.execute(sa.text(f"ALTER DATABASE {database} SET timezone = '{zone}'"))
        for table in ("profiles", "posts"):
            connection.execute(sa.text(f"ALTER TABLE {table} ALTER updated_at TYPE timestamp"))
    engine.dispose()
    marks = marks_of_now(engine)

    def now_in_utc() -> datetime:
        with engine.connect() as connection:
            now: datetime = connection.execute(sa.text("SELECT clock_timestamp() AT TIME ZONE 'UTC'")).scalar_one()
            return now

    profile_id = add_profile(engine, "05", now_in_utc())
    assert changed(engine, marks) == {"05"}
    assert read(engine, marks) == [profile_id]
    assert changed(engine, marks_of_now(engine)) == set()
    assert marks_of_now(engine)["05"].recent_rows == 1


def test_recent_watermarks_keep_a_look_to_the_indexes(engine: sa.Engine) -> None:
    fill(engine)
    marks = marks_of_now(engine)
    assert_only_indexes(engine, changes._CHANGES, changes._changes_since(marks, clock(engine)))


def test_changed_profiles_are_found_by_the_indexes(engine: sa.Engine) -> None:
    fill(engine)
    marks = marks_of_now(engine)
    first, last = shard_bounds("00", "3f")
    parameters = {"first": first, "last": last, "page": 10_000, **changes._since(marks)}
    assert_only_indexes(engine, changes._CHANGED_PROFILES, parameters)


def fill(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO profiles (id, username, updated_at)
                SELECT gen_random_uuid(), 'u', now() - n * interval '1 minute' FROM generate_series(1, 20000) AS n
            """)
        )
        connection.execute(
            sa.text("""
                INSERT INTO posts (id, profile_id, media_id, taken_at, updated_at)
                SELECT gen_random_uuid(), id, 'm', updated_at, updated_at FROM profiles
            """)
        )
        connection.execute(sa.text("ANALYZE profiles, posts"))


def assert_only_indexes(engine: sa.Engine, query: sa.TextClause, parameters: Mapping[str, Any]) -> None:
    with engine.connect() as connection:
        plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {query}"), parameters))
    assert "idx_profiles_updated_at" in plan
    assert "idx_posts_updated_at" in plan
    assert "Seq Scan" not in plan


def test_without_the_indexes_everything_works_as_well(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_profiles_updated_at, idx_posts_updated_at, idx_posts_profile_taken"))
    marks = marks_of_now(engine)
    profile_id = add_profile(engine, "05", clock(engine))
    assert changed(engine, marks) == {"05"}
    assert read(engine, marks) == [profile_id]


# -- reading what changed --


def test_a_profile_is_read_whole_when_it_or_one_of_its_posts_changed(engine: sa.Engine) -> None:
    yesterday = clock(engine) - timedelta(days=1)
    quiet, renewed, posted = (add_profile(engine, shard, yesterday) for shard in ("01", "02", "03"))
    for profile_id in (quiet, renewed, posted):
        add_post(engine, profile_id, yesterday)
    marks = marks_of_now(engine)
    touch(engine, profiles_table, renewed, clock(engine))
    add_post(engine, posted, clock(engine))
    (batch,) = read_changed_references(engine, marks)
    assert batch.profiles == {"02": 1, "03": 1}
    assert sorted(reference.shard for reference in batch.references) == ["02"] * 2 + ["03"] * 3


def test_each_shard_is_read_since_its_own_watermark(engine: sa.Engine) -> None:
    now = clock(engine)
    ids = {shard: add_profile(engine, shard, now - timedelta(minutes=20)) for shard in ("01", "02", "03")}
    half_an_hour_ago = Watermark(now - timedelta(minutes=30), 0)
    marks = {"01": half_an_hour_ago, "02": Watermark(now, 0), "03": half_an_hour_ago}
    assert read(engine, marks) == [ids["01"], ids["03"]]
    assert read(engine, {"01": half_an_hour_ago}) == [ids["01"]]


def test_many_changes_come_page_by_page_and_batch_by_batch_in_the_order_of_shards(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_IDS_AT_ONCE", 5)
    monkeypatch.setattr(changes, "PROFILES_PER_BATCH", 2)
    marks = marks_of_now(engine)
    ids = [add_profile(engine, shard, clock(engine)) for shard in SHARDS[::6]]
    edge = {"id": uuid.UUID(int=2**128 - 1), "username": "u", "profile_pic_url_hd": f"{FOLDER}/1_n.jpg"}
    with engine.begin() as connection:
        connection.execute(profiles_table.insert(), edge | {"updated_at": clock(engine)})
    assert read(engine, marks) == [*ids, edge["id"]]
    batches = list(read_changed_references(engine, marks))
    assert max(sum(batch.profiles.values()) for batch in batches) == 2


def test_posts_of_a_profile_that_does_not_exist_are_passed_over(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE posts DROP CONSTRAINT posts_profile_id_fkey"))
    marks = marks_of_now(engine)
    add_post(engine, profile_in("05"), clock(engine))
    assert changed(engine, marks) == {"05"}
    assert list(read_changed_references(engine, marks)) == []


# -- rows that are gone --


def test_rows_that_are_gone_are_told_from_those_that_exist(engine: sa.Engine) -> None:
    profile_id = add_profile(engine, "05", clock(engine))
    post_id = add_post(engine, profile_id, clock(engine))
    here = {
        SourceRow("profile_avatar", str(profile_id)),
        SourceRow("post_thumbnail", str(post_id)),
        SourceRow("post_carousel", str(post_id)),
    }
    gone = {
        SourceRow("profile_avatar", str(post_id)),
        SourceRow("post_thumbnail", str(profile_id)),
        SourceRow("post_carousel", str(uuid.uuid4())),
    }
    assert missing_rows(engine, here | gone) == gone
    assert missing_rows(engine, set()) == frozenset()


def test_a_missing_column_is_named_with_advice(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE posts DROP COLUMN updated_at"))
    with pytest.raises(SourceSchemaError, match=r"updated_at.*SOURCE_DATABASE_URL"):
        marks_of_now(engine)
