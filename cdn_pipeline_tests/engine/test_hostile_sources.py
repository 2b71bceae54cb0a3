"""Whatever stands in source rows and in a provider's answers: images or counted refusals, and the next row is read."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.engine.discover import Discovered, discover
from cdn_pipeline.engine.refetch import Patience, refetch
from cdn_pipeline.queue.fresh_urls import Allowance
from cdn_pipeline.sources.carousel import MAX_CHILDREN, MAX_TEXT
from cdn_pipeline.sources.decodo_payloads import message_of, read_body
from cdn_pipeline.sources.discovery import Change
from cdn_pipeline.sources.provider import Answer, ProviderRefusedError
from cdn_pipeline_tests.engine.runs import images

FOLDER = "https://scontent.cdninstagram.com/v/t51.2885-15"
GOOD_URL = f"{FOLDER}/7_7_7_n.jpg?oe=6F000000"
GOOD_PROFILE = uuid.UUID("04000000-0000-4000-8000-000000000001")  # in the shard of the hostile one
HOSTILE_PROFILE = uuid.UUID("04000000-0000-4000-8000-000000000000")  # which is read before it
MANY = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# What a column of text can hold at all: no NUL, no half of a surrogate pair.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 100, 5000]))
INJECTED = st.sampled_from(
    [
        "'; DROP TABLE posts; --",
        "' OR 1=1 --",
        "%s %(id)s :id ${id} {0}",
        "<script>alert(1)</script>",
        "\x1b[2J\x1b]0;owned\x07",
        "a\r\n2026-01-01 ERROR forged",
        "../../../etc/passwd",
        "\u202egnp.jpg",
        "\ufeff",
        "=cmd|' /C calc'!A0",
    ]
)
HOSTS = st.sampled_from(["scontent.cdninstagram.com", "[::1]", "127.0.0.1", "xn--a", "a" * 300, "é.example", ""])
URLS = st.one_of(
    TEXT,
    LONG,
    INJECTED,
    st.just(GOOD_URL),
    st.builds("https://{}/v/t51.2885-15/{}_n.jpg?oe={}&stp={}&ig_cache_key={}".format, HOSTS, *[TEXT] * 4),
    st.builds(
        f"{FOLDER}/1_2_3_n.jpg?oe={{:X}}&efg={{}}".format,
        st.integers(0, 2**64),
        st.sampled_from(["W1tbW1s=", "bnVsbA"]),
    ),
    st.builds("http://{}:{}/{}".format, HOSTS, st.integers(-1, 70_000), TEXT),
)
TIMES = st.one_of(
    st.sampled_from(
        ["infinity", "-infinity", "4713-01-01 BC", "0001-01-01", "9999-12-31 23:59:59.999999-15", "294276-12-31"]
    ),
    st.datetimes().map(str),
    st.none(),
)
# As text of JSON, in which escapes stand for what no text can hold.
SCALARS = (
    TEXT
    | INJECTED
    | URLS
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "\0", GOOD_URL + "\0"])
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.none()
)
KEYS = st.sampled_from(["id", "display_url", "node", "edges", "edge_sidecar_to_children"])
NODES = st.fixed_dictionaries({}, optional={"id": SCALARS, "display_url": SCALARS})
ANY_JSON = st.recursive(
    SCALARS | NODES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)
CAROUSELS = st.one_of(
    st.none(),
    TEXT,
    st.lists(NODES | ANY_JSON, max_size=5).map(json.dumps),
    ANY_JSON.map(json.dumps),
    ANY_JSON.map(json.dumps).map(json.dumps),
    st.lists(NODES, max_size=3).map(lambda nodes: json.dumps({"edges": [{"node": node} for node in nodes]})),
    st.sampled_from(
        [
            "[" * 100_000,
            "[" * 5_000 + "]" * 5_000,
            '{"edges":' * 3_000,
            f'[{{"id": 1{"0" * 5_000}}}]',
            f'[{{"id": "1", "display_url": "{"a" * 20_000}"}}]',
            json.dumps([{"id": str(number), "display_url": f"http://a/{number}"} for number in range(500)]),
            json.dumps([{"id": "x" * (MAX_TEXT + 1), "display_url": GOOD_URL}]),
            '[{"id": "\\u0000", "display_url": "https://a/\\u0000"}]',
            '[{"id": "\\ud800", "display_url": "https://a/\\udfff"}]',
            "[NaN, Infinity, -Infinity, 1e999]",
        ]
    ),
)
POSTS = st.fixed_dictionaries(
    {
        "media_id": TEXT | LONG | INJECTED,
        "display_url": URLS | st.none(),
        "thumbnail_src": URLS | st.none(),
        "sidecar_children": CAROUSELS,
        "taken_at": TIMES,
        "updated_at": TIMES,
    }
)
PROFILES = st.fixed_dictionaries(
    {
        "username": TEXT | LONG | INJECTED,
        "profile_pic_url": URLS | st.none(),
        "profile_pic_url_hd": URLS | st.none(),
        "updated_at": TIMES,
    }
)

_PROFILE = sa.text("""
    INSERT INTO profiles (id, username, profile_pic_url, profile_pic_url_hd, updated_at)
    VALUES (:id, :username, :profile_pic_url, :profile_pic_url_hd, CAST(:updated_at AS timestamptz))
""")
_POST = sa.text("""
    INSERT INTO posts (id, profile_id, media_id, display_url, thumbnail_src, sidecar_children, taken_at, updated_at)
    VALUES (gen_random_uuid(), :profile_id, :media_id, :display_url, :thumbnail_src, :sidecar_children,
            CAST(:taken_at AS timestamptz), CAST(:updated_at AS timestamptz))
""")


@pytest.fixture
def source(empty_database: str) -> Iterator[sa.Engine]:
    """Tables that hold anything: nothing is required, and carousels are text, of which JSON is only a part."""
    engine = sa.create_engine(empty_database)
    create_tables(engine)
    with engine.begin() as connection:
        for column in ("posts ALTER taken_at", "posts ALTER updated_at", "profiles ALTER updated_at"):
            connection.execute(sa.text(f"ALTER TABLE {column} DROP NOT NULL"))
        connection.execute(sa.text("ALTER TABLE posts ALTER sidecar_children TYPE text"))
    yield engine
    engine.dispose()


def fill(source: sa.Engine, profile: Mapping[str, Any], posts: Sequence[Mapping[str, Any]]) -> None:
    """The hostile profile with its posts, and a good one after it."""
    good = {"username": "good", "profile_pic_url": GOOD_URL, "profile_pic_url_hd": None, "updated_at": "2026-01-01"}
    with source.begin() as connection:
        connection.execute(sa.text("TRUNCATE profiles, posts"))
        connection.execute(_PROFILE, [{"id": HOSTILE_PROFILE, **profile}, {"id": GOOD_PROFILE, **good}])
        if posts:
            connection.execute(_POST, [{"profile_id": HOSTILE_PROFILE, **post} for post in posts])


def forget(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text("TRUNCATE cdn_image_assets, cdn_source_watermarks CASCADE"))


def look(source: sa.Engine, catalog: sa.Engine) -> Discovered:
    """What is found in the shard of both profiles; all other shards have to be reported too."""
    found = {each.shard: each for each in discover(source, catalog, INSTAGRAM, SHARDS)}
    assert list(found) == list(SHARDS)
    return found["01"]


def assert_fit_for_the_queue(catalog: sa.Engine) -> None:
    for row in images(catalog):
        assert row["source_url"].startswith(("http://", "https://"))
        assert row["source_url"].isprintable()
        assert " " not in row["source_url"]
        assert 0 < len(row["media_id"]) <= 100
        assert row["observed_at"] <= datetime.now(UTC) + timedelta(minutes=5)


HUGE_NUMBER, DEEP = '[{"id": 1' + "0" * 5_000 + "}]", "[" * 3_000 + "]" * 3_000
PLAIN_PROFILE = {"username": "u", "profile_pic_url": None, "profile_pic_url_hd": None, "updated_at": "infinity"}
PLAIN_POST = {"media_id": "1", "display_url": GOOD_URL, "thumbnail_src": None, "taken_at": None, "updated_at": None}


@MANY
@given(profile=PROFILES, posts=st.lists(POSTS, max_size=4))
@example(
    profile=PLAIN_PROFILE,
    posts=[{**PLAIN_POST, "sidecar_children": HUGE_NUMBER}, {**PLAIN_POST, "sidecar_children": DEEP}],
)
def test_any_row_is_images_or_counted_and_costs_its_neighbour_nothing(
    source: sa.Engine, catalog: sa.Engine, profile: Mapping[str, Any], posts: Sequence[Mapping[str, Any]]
) -> None:
    fill(source, profile, posts)
    forget(catalog)
    found = look(source, catalog)
    assert found.profiles == 2
    rows = images(catalog)
    assert str(GOOD_PROFILE) in {row["owner_id"] for row in rows}
    assert found.images == len(rows)
    assert len(rows) + found.problems.total() >= 2 + len(posts)
    assert all(len(words) <= 300 and words.isprintable() for words in found.samples)
    assert_fit_for_the_queue(catalog)
    again = look(source, catalog)
    assert again.changes.keys() <= {Change.UNCHANGED, Change.OUTDATED}
    assert (again.images, again.problems) == (found.images, found.problems)


@pytest.mark.parametrize("text", [HUGE_NUMBER, DEEP, json.dumps("[" * 100_000)], ids=["number", "depth", "string"])
def test_json_that_postgres_holds_and_python_does_not_is_counted(
    source: sa.Engine, catalog: sa.Engine, text: str
) -> None:
    with source.begin() as connection:
        connection.execute(sa.text("ALTER TABLE posts ALTER sidecar_children TYPE jsonb USING sidecar_children::jsonb"))
    fill(source, PLAIN_PROFILE, [])
    with source.begin() as connection:
        statement = sa.text(str(_POST).replace(":sidecar_children,", "CAST(:sidecar_children AS jsonb),"))
        connection.execute(statement, {"profile_id": HOSTILE_PROFILE, **PLAIN_POST, "sidecar_children": text})
    found = look(source, catalog)
    assert found.problems["bad_sidecar_children"] == 1
    assert {row["source_type"] for row in images(catalog)} == {"profile_avatar", "post_thumbnail"}


@pytest.mark.parametrize("moment", ["infinity", "294276-12-31", "2999-01-01"])
def test_a_row_of_the_future_does_not_outlive_a_later_observation(
    source: sa.Engine, catalog: sa.Engine, moment: str
) -> None:
    fill(source, {**PLAIN_PROFILE, "profile_pic_url": f"{FOLDER}/1_1_1_n.jpg", "updated_at": moment}, [])
    look(source, catalog)
    fill(source, {**PLAIN_PROFILE, "profile_pic_url": f"{FOLDER}/2_2_2_n.jpg", "updated_at": "infinity"}, [])
    assert look(source, catalog).changes[Change.CHANGED] == 1


def test_a_carousel_is_read_as_far_as_the_source_allows_carousels_to_be(source: sa.Engine, catalog: sa.Engine) -> None:
    children = [{"id": str(number), "display_url": f"http://a/{number}"} for number in range(1000)]
    fill(source, PLAIN_PROFILE, [{**PLAIN_POST, "sidecar_children": json.dumps(children)}])
    found = look(source, catalog)
    assert found.problems["too_many_children"] == 1
    assert sum(row["source_type"] == "post_carousel" for row in images(catalog)) == MAX_CHILDREN


# -- providers --

ALLOWANCE = Allowance("decodo", per_day=1_000_000, per_second=1_000_000.0)
USER = st.fixed_dictionaries(
    {},
    optional={
        "username": SCALARS | st.just("hostile"),
        "profile_pic_url": SCALARS,
        "profile_pic_url_hd": URLS,
        "is_private": SCALARS | st.just(False),
        "edge_owner_to_timeline_media": ANY_JSON,
    },
)
BODIES = st.one_of(
    ANY_JSON,
    USER.map(lambda user: {"results": [{"content": {"data": {"user": user}}}]}),
    USER.map(lambda user: {"results": [{"content": json.dumps({"data": {"user": user}})}]}),
    st.builds(lambda words: {"message": words, "status_code": 401}, SCALARS),
)


@dataclass
class Vendor:
    """Answers everybody with one body of JSON, or refuses with the words in it."""

    body: Any
    refuses: bool
    name: str = "decodo"
    asked: list[str] = field(default_factory=list)

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        self.asked += usernames
        if self.refuses:
            raise ProviderRefusedError(f"Decodo takes no batch: {message_of(self.body)}")
        yield from (read_body(self.body, username) for username in usernames)


@MANY
@given(body=BODIES, refuses=st.booleans())
@example(body={"message": "no\0 such\ud800 target"}, refuses=True)
def test_any_answer_of_a_provider_is_pictures_or_a_noted_refusal(
    source: sa.Engine, catalog: sa.Engine, body: Any, refuses: bool
) -> None:
    dead = f"{FOLDER}/1_1_1_n.jpg?oe=5F000000"
    fill(source, {**PLAIN_PROFILE, "username": "hostile", "profile_pic_url": dead}, [])
    forget(catalog)
    with catalog.begin() as connection:
        connection.execute(sa.text("TRUNCATE cdn_provider_owners, cdn_provider_usage"))
    look(source, catalog)
    vendor = Vendor(body, refuses)
    patience = Patience(rounds=1, pause_seconds=0.0)
    found = refetch(vendor, ALLOWANCE, source, catalog, INSTAGRAM, SHARDS, patience)
    assert vendor.asked == ["hostile"]
    told = found.answered.total() + found.refusals.total()
    assert told == (0 if refuses else 1)
    assert bool(found.stopped) == refuses
    assert_fit_for_the_queue(catalog)
