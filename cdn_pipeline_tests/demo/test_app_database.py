import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import Engine, create_engine, inspect, select

from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.app_database import Population, posts_table, profiles_table
from cdn_pipeline.demo.rows import Row
from cdn_pipeline.demo.signing import Signer, expiry_of
from cdn_pipeline.sources import instagram
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.postgres import empty_database, postgres_server  # noqa: F401
from cdn_pipeline_tests.world import SmallWorld, origin, picture_folder, small_world  # noqa: F401

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIGNER = Signer("http://127.0.0.1:8100", "secret")


@pytest.fixture
def engine(empty_database: str) -> Iterator[Engine]:
    engine = create_engine(empty_database)
    app_database.create_tables(engine)
    yield engine
    engine.dispose()


def test_the_tables_and_indexes_are_the_contracts(engine: Engine) -> None:
    tables = inspect(engine)
    assert [column["name"] for column in tables.get_columns("profiles")] == [
        "id",
        "username",
        "profile_pic_url",
        "profile_pic_url_hd",
        "updated_at",
    ]
    assert {column["name"]: str(column["type"]) for column in tables.get_columns("posts")} == {
        "id": "UUID",
        "profile_id": "UUID",
        "media_id": "TEXT",
        "display_url": "TEXT",
        "thumbnail_src": "TEXT",
        "sidecar_children": "JSONB",
        "taken_at": "TIMESTAMP",
        "updated_at": "TIMESTAMP",
    }
    assert [index["column_names"] for index in tables.get_indexes("profiles")] == [["updated_at"]]
    posts_indexes = sorted(index["column_names"] for index in tables.get_indexes("posts"))
    assert posts_indexes == [["profile_id", "taken_at"], ["updated_at"]]


def test_creating_the_tables_twice_is_harmless_and_dropping_them_leaves_nothing(engine: Engine) -> None:
    app_database.create_tables(engine)
    app_database.drop_tables(engine)
    assert inspect(engine).get_table_names() == []


def test_the_default_population_has_more_than_500_images_over_most_shards(engine: Engine) -> None:
    population = _populate(engine)
    profiles, posts = _rows(engine)
    children = sum(len(_nodes(post)) - 1 for post in posts if post["sidecar_children"])
    assert len(profiles) == 44
    assert len(posts) == 44 * 12 + 3 == len(population.post_ids)
    assert len(profiles) + len(posts) + children > 500
    assert len({shard_of(row["id"]) for row in profiles}) > 25


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(engine: Engine) -> None:
    populations = []
    for seed in (1, 1, 2):
        app_database.drop_tables(engine)
        app_database.create_tables(engine)
        _populate(engine, profiles=5, seed=seed)
        populations.append(_rows(engine))
    assert populations[0] == populations[1] != populations[2]


def test_no_picture_belongs_to_two_owners(engine: Engine) -> None:
    _populate(engine, nasty_rows=False)
    profiles, posts = _rows(engine)
    urls = [row["profile_pic_url"] for row in profiles] + [row["display_url"] for row in posts]
    assert len({urlsplit(url).path for url in urls}) == len(urls)


def test_both_urls_of_a_row_have_one_identity_and_the_better_one_comes_first(engine: Engine) -> None:
    _populate(engine, nasty_rows=False)
    profiles, posts = _rows(engine)
    pairs = [(row["profile_pic_url_hd"], row["profile_pic_url"]) for row in profiles]
    pairs += [(row["display_url"], row["thumbnail_src"]) for row in posts]
    for better, other in ((instagram.parse(one), instagram.parse(two)) for one, two in pairs):
        assert better.identity == other.identity
        assert better.rank >= other.rank  # equal where the master is 640 px and square


def test_carousels_come_in_both_shapes_and_their_first_child_is_the_posts_own_picture(engine: Engine) -> None:
    _populate(engine, nasty_rows=False)
    carousels = [post for post in _rows(engine)[1] if post["sidecar_children"]]
    assert {type(post["sidecar_children"]) for post in carousels} == {list, dict}
    for post in carousels:
        identities = [instagram.parse(node["display_url"]).identity for node in _nodes(post)]
        assert identities[0] == instagram.parse(post["display_url"]).identity
        assert len(set(identities)) == len(identities) >= 2


def test_some_posts_carry_a_cache_key_and_a_media_id_that_tells_the_time(engine: Engine) -> None:
    _populate(engine, nasty_rows=False)
    posts = _rows(engine)[1]
    keyed = [post for post in posts if "ig_cache_key=" in post["display_url"]]
    assert 0.1 < len(keyed) / len(posts) < 0.5
    for post in posts:
        told = datetime.fromtimestamp(((int(post["media_id"]) >> 23) + 1314220021721) / 1000, UTC)
        assert abs(told - post["taken_at"]) < timedelta(seconds=1)


def test_every_url_lives_four_days_and_none_lives_five(engine: Engine) -> None:
    _populate(engine, nasty_rows=False)
    for url in _urls(engine):
        expires_at = expiry_of(url)
        assert expires_at is not None
        assert timedelta(days=4) <= expires_at + timedelta(seconds=1) - NOW <= timedelta(days=5)


def test_nasty_rows_are_few_and_of_every_kind(engine: Engine) -> None:
    _populate(engine)
    profiles, posts = _rows(engine)
    assert sum(row["profile_pic_url"] is None for row in profiles) == 1
    assert sum(row["display_url"] is None for row in posts) == 2
    assert sum(row["display_url"] == "no picture" for row in posts) == 1
    assert sum(r"\u0026" in (row["display_url"] or "") for row in posts) == 1
    assert sum(not row["media_id"].isalnum() for row in posts) == 1
    assert sum(row["taken_at"] < NOW - timedelta(days=700) for row in posts) == 3


def test_signing_again_keeps_every_picture_and_lets_every_url_live_longer(engine: Engine) -> None:
    _populate(engine, profiles=6, nasty_rows=False)
    before, later = _urls(engine), NOW + timedelta(days=5)
    app_database.resign_all(engine, SIGNER, now=later)
    after = _urls(engine)
    assert [urlsplit(url).path for url in after] == [urlsplit(url).path for url in before]
    assert not set(after) & set(before)
    assert all(_expiry(new) > later > _expiry(old) for new, old in zip(after, before, strict=True))
    assert all(row["updated_at"] == later for rows in _rows(engine) for row in rows)


def test_one_profile_is_fetched_again_without_the_others(engine: Engine) -> None:
    first, *_ = _populate(engine, profiles=2, posts=2, nasty_rows=False).profile_ids
    later = NOW + timedelta(days=3)
    app_database.resign_profile(engine, SIGNER, first, now=later)
    profiles, posts = _rows(engine)
    assert {row["id"] == first: row["updated_at"] for row in profiles} == {True: later, False: NOW}
    assert {row["profile_id"] == first: row["updated_at"] for row in posts} == {True: later, False: NOW}
    assert all(
        (_expiry(row["display_url"]) > later + timedelta(days=4)) == (row["profile_id"] == first) for row in posts
    )


def test_signing_again_copes_with_nasty_rows(engine: Engine) -> None:
    _populate(engine, profiles=6)
    app_database.resign_all(engine, SIGNER, now=NOW + timedelta(days=5))
    assert sum(row["display_url"] is None for row in _rows(engine)[1]) == 2


def test_a_replaced_avatar_has_another_file_name_and_only_its_row_changes(engine: Engine) -> None:
    first, *others = _populate(engine, profiles=3, nasty_rows=False).profile_ids
    before = _by_id(_rows(engine)[0])
    picture = app_database.replace_avatar(engine, SIGNER, first, now=NOW + timedelta(hours=1))
    after = _by_id(_rows(engine)[0])
    assert urlsplit(after[first]["profile_pic_url"]).path == picture.path
    assert urlsplit(after[first]["profile_pic_url_hd"]).path == picture.path
    assert picture.path != urlsplit(before[first]["profile_pic_url"]).path
    assert after[first]["updated_at"] > before[first]["updated_at"]
    assert all(after[other] == before[other] for other in others)


def test_profiles_and_posts_can_be_added_and_posts_deleted(engine: Engine) -> None:
    _populate(engine, profiles=2, posts=2, nasty_rows=False)
    profile_id = app_database.add_profile(engine, SIGNER, seed=9, posts=2, now=NOW)
    post_id = app_database.add_post(engine, SIGNER, profile_id, now=NOW + timedelta(minutes=1))
    profiles, posts = _rows(engine)
    assert (len(profiles), len(posts)) == (3, 7)
    newest = max((post for post in posts if post["profile_id"] == profile_id), key=lambda post: post["taken_at"])
    assert newest["id"] == post_id
    app_database.delete_post(engine, post_id)
    assert post_id not in _by_id(_rows(engine)[1])


def test_a_post_may_arrive_with_urls_that_are_about_to_die(engine: Engine) -> None:
    profile_id, *_ = _populate(engine, profiles=1, posts=0, nasty_rows=False).profile_ids
    app_database.add_post(engine, SIGNER, profile_id, now=NOW, signed_at=NOW - timedelta(days=3, hours=12))
    [post] = _rows(engine)[1]
    assert (post["taken_at"], post["updated_at"]) == (NOW, NOW)
    assert timedelta(hours=12) <= _expiry(post["display_url"]) - NOW <= timedelta(hours=32)


def test_every_url_of_a_small_world_is_served_until_five_days_have_passed(small_world: SmallWorld) -> None:
    world = small_world(profiles=2, posts=2)
    urls = _urls(world.engine)
    with httpx.Client() as client:
        assert {client.get(url).status_code for url in urls} == {HTTPStatus.OK}
        world.origin.advance_clock(timedelta(days=5))
        assert {client.get(url).text for url in urls} == {"URL signature expired"}
        app_database.resign_all(world.engine, world.origin.signer, now=world.origin.now())
        assert {client.get(url).status_code for url in _urls(world.engine)} == {HTTPStatus.OK}
    assert world.origin.requests.by_outcome() == {"ok": 2 * len(urls), "expired": len(urls)}


def _populate(
    engine: Engine, *, profiles: int = 44, posts: int = 12, seed: int = 1, nasty_rows: bool = True
) -> Population:
    return app_database.populate(
        engine, SIGNER, profiles=profiles, posts_per_profile=posts, seed=seed, now=NOW, nasty_rows=nasty_rows
    )


def _rows(engine: Engine) -> tuple[list[Row], list[Row]]:
    """All profiles and all posts, by id."""
    with engine.connect() as connection:
        profiles = connection.execute(select(profiles_table).order_by(profiles_table.c.id)).mappings()
        posts = connection.execute(select(posts_table).order_by(posts_table.c.id)).mappings()
        return [dict(row) for row in profiles], [dict(row) for row in posts]


def _by_id(rows: Sequence[Row]) -> dict[uuid.UUID, Row]:
    return {row["id"]: row for row in rows}


def _nodes(post: Row) -> list[dict[str, Any]]:
    children = post["sidecar_children"]
    return children if isinstance(children, list) else [edge["node"] for edge in children["edges"]]


def _urls(engine: Engine) -> list[str]:
    profiles, posts = _rows(engine)
    urls = [row[name] for row in profiles for name in ("profile_pic_url", "profile_pic_url_hd")]
    urls += [row[name] for row in posts for name in ("display_url", "thumbnail_src")]
    return urls + [node["display_url"] for post in posts if post["sidecar_children"] for node in _nodes(post)]


def _expiry(url: str) -> datetime:
    expires_at = expiry_of(url)
    assert expires_at is not None
    return expires_at
