import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.catalog.sessions import open_source_database
from cdn_pipeline.collections import SHARD_COUNT, SHARDS
from cdn_pipeline.demo.app_database import create_tables, posts_table, profiles_table
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources import app_database
from cdn_pipeline.sources.app_database import (
    LATEST_POSTS,
    SourceBatch,
    SourceSchemaError,
    read_references,
    read_usernames,
    shard_bounds,
    shard_of,
)
from cdn_pipeline.sources.discovery import ImageReference

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PROFILE = uuid.UUID("04000000-0000-4000-8000-000000000001")  # shard 01
FOLDER = "https://scontent.cdninstagram.com/v/t51.2885-15"
PICTURE = f"{FOLDER}/1_2_3_n.jpg?stp=dst-jpg_e35_p1080x1080&oe=6F000000"
OTHER_PICTURE = f"{FOLDER}/4_5_6_n.jpg?stp=dst-jpg_e35_p1080x1080&oe=6F000000"

shards = st.sampled_from(SHARDS)


# -- shards --


@given(st.uuids())
def test_every_profile_is_within_the_bounds_of_its_shard_and_of_no_other(profile_id: uuid.UUID) -> None:
    shard = shard_of(profile_id)
    assert shard in SHARDS
    first, last = shard_bounds(shard, shard)
    assert first <= profile_id <= last


@given(shards, shards)
def test_the_ends_of_a_range_belong_to_its_outermost_shards(one: str, other: str) -> None:
    first_shard, last_shard = sorted((one, other))
    first, last = shard_bounds(first_shard, last_shard)
    assert (shard_of(first), shard_of(last)) == (first_shard, last_shard)


def test_shards_follow_each_other_without_gap_or_overlap() -> None:
    bounds = [shard_bounds(shard, shard) for shard in SHARDS]
    assert bounds[0][0].int == 0
    assert bounds[-1][1].int == 2**128 - 1
    assert all(after[0].int == before[1].int + 1 for before, after in pairwise(bounds))
    assert shard_bounds(SHARDS[0], SHARDS[-1]) == (bounds[0][0], bounds[-1][1])


def test_the_shard_is_the_top_six_bits() -> None:
    assert [shard_of(uuid.UUID(int=number << 122)) for number in range(SHARD_COUNT)] == list(SHARDS)
    assert shard_of(uuid.UUID("03ffffff-ffff-ffff-ffff-ffffffffffff")) == "00"


# -- reading --


@pytest.fixture
def engine(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    create_tables(engine)
    yield engine
    engine.dispose()


def add_profile(engine: sa.Engine, profile_id: uuid.UUID = PROFILE, **columns: Any) -> None:
    row = {
        "id": profile_id,
        "username": "u",
        "profile_pic_url_hd": f"{FOLDER}/9_9_9_n.jpg?oe=6F000000",
        "updated_at": NOW,
    }
    with engine.begin() as connection:
        connection.execute(profiles_table.insert(), row | columns)


def add_post(engine: sa.Engine, **columns: Any) -> uuid.UUID:
    post_id = uuid.uuid4()
    row = {
        "id": post_id,
        "profile_id": PROFILE,
        "media_id": "123",
        "display_url": PICTURE,
        "taken_at": NOW,
        "updated_at": NOW,
    }
    with engine.begin() as connection:
        connection.execute(posts_table.insert(), row | columns)
    return post_id


def read(engine: sa.Engine, first: str = "00", last: str = "3f") -> SourceBatch:
    """Everything that is found, as one batch."""
    total = SourceBatch()
    for batch in read_references(engine, first, last):
        total.references += batch.references
        total.profiles += batch.profiles
        total.problems += batch.problems
        total.samples += batch.samples
    return total


def of_type(batch: SourceBatch, source_type: str) -> list[ImageReference]:
    return [reference for reference in batch.references if reference.key.source_type == source_type]


def problems(batch: SourceBatch) -> dict[str, int]:
    return {kind: count for (_, kind), count in batch.problems.items()}


def test_an_avatar_is_keyed_by_its_profile(engine: sa.Engine) -> None:
    add_profile(engine, profile_pic_url=PICTURE)
    (avatar,) = read(engine).references
    assert (avatar.key.source_type, avatar.key.source_id, avatar.key.media_id) == (
        "profile_avatar",
        str(PROFILE),
        "avatar",
    )
    assert (avatar.owner_id, avatar.shard, avatar.taken_at, avatar.observed_at) == (str(PROFILE), "01", None, NOW)
    assert [candidate.identity for candidate in avatar.candidates] == ["file:9_9_9_n", "file:1_2_3_n"]


def test_a_post_is_keyed_by_its_own_id_and_instagrams(engine: sa.Engine) -> None:
    add_profile(engine)
    post_id = add_post(engine, thumbnail_src=OTHER_PICTURE)
    (post,) = of_type(read(engine), "post_thumbnail")
    assert (post.key.source_id, post.key.media_id, post.owner_id, post.shard) == (
        str(post_id),
        "123",
        str(PROFILE),
        "01",
    )
    assert (post.taken_at, len(post.candidates)) == (NOW, 2)


def test_only_the_latest_twelve_posts_count_and_posts_without_time_come_last(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE posts ALTER taken_at DROP NOT NULL"))
    add_profile(engine)
    for day in range(LATEST_POSTS + 3):
        add_post(engine, media_id=str(day), taken_at=NOW - timedelta(days=day))
    add_post(engine, media_id="timeless", taken_at=None)
    found = {post.key.media_id for post in of_type(read(engine), "post_thumbnail")}
    assert found == {str(day) for day in range(LATEST_POSTS)}


def test_a_media_id_that_no_key_can_carry_is_hashed(engine: sa.Engine) -> None:
    add_profile(engine)
    add_post(engine, media_id="123_7/ü?")
    (post,) = of_type(read(engine), "post_thumbnail")
    assert post.key.media_id.startswith("x-")


def child(number: int, url: str = OTHER_PICTURE) -> dict[str, Any]:
    return {"id": str(number), "display_url": url}


CHILDREN = [child(1, PICTURE), child(2), child(3, OTHER_PICTURE.replace("4_5_6", "7_8_9"))]


@pytest.mark.parametrize(
    "sidecar",
    [
        CHILDREN,
        {"edges": [{"node": each} for each in CHILDREN]},
        {"edges": {str(number): {"node": each} for number, each in enumerate(CHILDREN)}},
        json.dumps(CHILDREN),
        json.dumps({"edges": [{"node": each} for each in CHILDREN]}),
    ],
    ids=["list", "edges list", "edges object", "list as text", "edges as text"],
)
def test_carousel_children_are_images_except_the_one_that_is_the_posts_own_picture(
    engine: sa.Engine, sidecar: object
) -> None:
    add_profile(engine)
    post_id = add_post(engine, sidecar_children=sidecar)
    batch = read(engine)
    children = of_type(batch, "post_carousel")
    assert [(each.key.source_id, each.key.media_id) for each in children] == [(str(post_id), "2"), (str(post_id), "3")]
    assert {(each.owner_id, each.taken_at, each.observed_at) for each in children} == {(str(PROFILE), NOW, NOW)}
    assert problems(batch) == {}


@pytest.mark.parametrize("sidecar", [None, [], {}, {"edges": None}, {"edges": []}, "null", "[]"])
def test_a_post_without_children_is_no_problem(engine: sa.Engine, sidecar: object) -> None:
    add_profile(engine)
    add_post(engine, sidecar_children=sidecar)
    batch = read(engine)
    assert (len(batch.references), problems(batch)) == (2, {})


@pytest.mark.parametrize(
    ("sidecar", "kinds"),
    [
        (5, {"bad_sidecar_children": 1}),
        ("no JSON", {"bad_sidecar_children": 1}),
        ("[" * 100_000, {"bad_sidecar_children": 1}),
        ({"edges": 5}, {"bad_sidecar_children": 1}),
        ({"edges": "text"}, {"bad_sidecar_children": 1}),
        ([None, 5, "text", []], {"bad_sidecar_children": 1}),
        ({"edges": [None, {"node": None}, {}]}, {"bad_sidecar_children": 1}),
        ([{"display_url": OTHER_PICTURE}, {"id": None}], {"bad_sidecar_children": 2}),
        ([{"id": "1"}, {"id": 2, "display_url": None}], {"no_url": 2}),
        ([{"id": "1", "display_url": {"x": 1}}], {"bad_url": 1, "no_url": 1}),
    ],
)
def test_nonsense_in_a_carousel_is_counted_and_costs_nothing_else(
    engine: sa.Engine, sidecar: object, kinds: dict[str, int]
) -> None:
    add_profile(engine)
    add_post(engine, sidecar_children=sidecar)
    batch = read(engine)
    assert len(batch.references) == 2
    assert problems(batch) == kinds
    assert all(shard == "01" and words for shard, words in batch.samples)


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_rows_without_a_url_are_counted(engine: sa.Engine, nothing: str | None) -> None:
    add_profile(engine, profile_pic_url=nothing, profile_pic_url_hd=nothing)
    add_post(engine, display_url=nothing, thumbnail_src=nothing)
    batch = read(engine)
    assert batch.references == []
    assert batch.profiles == {"01": 1}
    assert batch.problems == {("01", "no_url"): 2}
    assert batch.samples[0] == ("01", f"profiles {PROFILE} has no picture URL")


def test_one_bad_url_leaves_the_other(engine: sa.Engine) -> None:
    add_profile(engine, profile_pic_url_hd="not a picture", profile_pic_url=PICTURE)
    batch = read(engine)
    assert [len(reference.candidates) for reference in batch.references] == [1]
    assert problems(batch) == {"bad_url": 1}


def test_a_post_without_media_id_is_counted(engine: sa.Engine) -> None:
    add_profile(engine)
    add_post(engine, media_id="")
    assert problems(read(engine)) == {"no_media_id": 1}


def test_times_without_zone_are_utc_and_a_missing_observation_is_now(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE profiles ALTER updated_at DROP NOT NULL"))
        connection.execute(sa.text("ALTER TABLE profiles ALTER updated_at TYPE timestamp"))
    add_profile(engine, updated_at=NOW.replace(tzinfo=None))
    add_profile(engine, uuid.UUID(int=1), updated_at=None)
    timeless, dated = read(engine).references
    assert dated.observed_at == NOW
    assert abs(timeless.observed_at - datetime.now(UTC)) < timedelta(minutes=5)


# -- ranges and batches --


def test_a_range_of_shards_is_read_completely_in_order_and_nothing_else(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_database, "PROFILES_PER_BATCH", 3)
    edges = [edge for shard in SHARDS for edge in shard_bounds(shard, shard)]
    for profile_id in edges:
        add_profile(engine, profile_id)
    assert dict(read(engine).profiles) == dict.fromkeys(SHARDS, 2)
    batches = list(read_references(engine, "10", "14"))
    found = [reference.shard for batch in batches for reference in batch.references]
    assert found == sorted(2 * ["10", "11", "12", "13", "14"])
    assert [len(batch.references) for batch in batches] == [3, 3, 3, 1]
    assert read(engine, "3f", "3f").profiles == {"3f": 2}


def test_an_empty_database_gives_no_batch(engine: sa.Engine) -> None:
    assert list(read_references(engine, "00", "3f")) == []


def test_no_transaction_stays_open_in_the_application_while_a_batch_is_worked_on(engine: sa.Engine) -> None:
    add_profile(engine)
    batches = read_references(engine, "00", "3f")
    next(batches)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    batches.close()  # type: ignore[attr-defined]


def test_a_range_of_shards_is_one_range_scan_of_the_primary_key(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO profiles (id, username, updated_at)
                SELECT gen_random_uuid(), 'u', now() FROM generate_series(1, 20000)
            """)
        )
        connection.execute(sa.text("ANALYZE profiles"))
        after, last = shard_bounds("10", "1f")
        for query in (app_database._FIRST_PROFILE, app_database._PROFILES):
            parameters = {"after": after, "last": last, "batch": 250}
            plan = connection.scalar(sa.text(f"EXPLAIN (FORMAT JSON) {query}"), parameters)[0]["Plan"]
            (scan,) = plan["Plans"]
            assert (plan["Node Type"], scan["Node Type"], scan["Index Name"]) == (
                "Limit",
                "Index Scan",
                "profiles_pkey",
            )
            assert scan["Index Cond"].count("(id ") == 2


# -- the application's database is only read --


def test_a_write_to_the_source_is_refused(engine: sa.Engine, settings: Settings) -> None:
    add_profile(engine)
    with open_source_database(settings) as source:
        assert len(read(source).references) == 1
        for statement in ("DELETE FROM profiles", "CREATE TABLE ours (id int)", "UPDATE posts SET media_id = '1'"):
            with pytest.raises(sa.exc.InternalError, match="read-only"), source.begin() as connection:
                connection.execute(sa.text(statement))
        assert len(read(source).references) == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("DROP TABLE posts", 'relation "posts" does not exist'),
        ("DROP TABLE posts, profiles", 'relation "profiles" does not exist'),
        ("ALTER TABLE posts DROP COLUMN sidecar_children", "sidecar_children"),
    ],
)
def test_a_missing_table_or_column_is_named_with_advice(engine: sa.Engine, damage: str, words: str) -> None:
    add_profile(engine)
    with engine.begin() as connection:
        connection.execute(sa.text(damage))
    with pytest.raises(SourceSchemaError, match="SOURCE_DATABASE_URL") as caught:
        read(engine)
    assert words in str(caught.value)


def test_the_advice_does_not_tell_the_password(empty_database: str) -> None:
    url = sa.make_url(empty_database).set(password="hunter2")
    engine = sa.create_engine(url)
    with pytest.raises(SourceSchemaError) as caught:
        read(engine)
    assert "hunter2" not in str(caught.value)
    engine.dispose()


def test_views_will_do(engine: sa.Engine) -> None:
    add_profile(engine)
    add_post(engine)
    with engine.begin() as connection:
        for table in ("profiles", "posts"):
            connection.execute(sa.text(f"ALTER TABLE {table} RENAME TO real_{table}"))
            connection.execute(sa.text(f"CREATE VIEW {table} AS SELECT * FROM real_{table}"))
    assert len(read(engine).references) == 2


# -- user names --


def test_user_names_are_read_of_profiles_that_are_there_and_have_one(engine: sa.Engine) -> None:
    others = [uuid.UUID(int=PROFILE.int + number) for number in range(1, 4)]
    add_profile(engine, PROFILE, username=" nba\n")
    add_profile(engine, others[0], username="")
    add_profile(engine, others[1], username=" \t")
    assert read_usernames(engine, [PROFILE, *others]) == {PROFILE: "nba"}
