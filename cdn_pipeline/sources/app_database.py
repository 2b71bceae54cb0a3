"""Reads image references from the application database (`profiles`, `posts`), range by range, read only.

The owner of an Instagram image is its profile, and the top six bits of the profile's UUID are its shard, so a range of
shards is one range scan of the primary key.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import SHARD_COUNT
from cdn_pipeline.sources.carousel import MAX_TEXT, read_children
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline.sources.instagram import MAX_URL_LENGTH, SourceUrl, media_key, parse

LATEST_POSTS = 12
PROFILES_PER_BATCH = 250  # × (1 avatar + 12 posts + carousels) ≈ 4,000 references in memory

_SHARD_SHIFT = 128 - (SHARD_COUNT - 1).bit_length()

_MAX_WORDS = 300  # characters of a sample: it goes into Dagster's storage


# One row must not cost its batch. So the database bounds what a row may say, before psycopg reads it: Python knows no
# time outside the years 1 to 9999, and its JSON neither numbers of more than 4,300 digits nor 1,000 levels.
def _bounded(column: str, length: int = MAX_URL_LENGTH + 1) -> str:
    """SQL for a column as text, cut off where it is too long to be used anyway."""
    return f"left(CAST({column} AS text), {length}) AS {column}"


# A row of the future was observed now: nothing later would ever count against it. `least` passes over NULL.
_OBSERVED_AT = "greatest(least(updated_at, clock_timestamp()), TIMESTAMPTZ '0001-01-02') AS updated_at"
_TAKEN_AT = "CASE WHEN taken_at BETWEEN '0001-01-02' AND '9999-12-30' THEN taken_at END AS taken_at"

_PROFILE = f"id, {_bounded('profile_pic_url')}, {_bounded('profile_pic_url_hd')}, {_OBSERVED_AT}"

_PROFILES = sa.text(f"""
    SELECT {_PROFILE} FROM profiles WHERE id > :after AND id <= :last ORDER BY id LIMIT :batch
""")

_FIRST_PROFILE = sa.text(f"""
    SELECT {_PROFILE} FROM profiles WHERE id >= :after AND id <= :last ORDER BY id LIMIT :batch
""")

_THESE_PROFILES = sa.text(f"""
    SELECT {_PROFILE} FROM profiles WHERE id = ANY(CAST(:profile_ids AS uuid[])) ORDER BY id
""")

_USERNAMES = sa.text(f"""
    SELECT id, {_bounded("username")} FROM profiles
    WHERE id = ANY(CAST(:profile_ids AS uuid[])) AND username ~ '[^[:space:]]'
""")

_POST = "id, profile_id, media_id, display_url, thumbnail_src, sidecar_children, taken_at, updated_at"
_BOUNDED_POST = f"""
    id, profile_id, {_bounded("media_id")}, {_bounded("display_url")}, {_bounded("thumbnail_src")},
    {_bounded("sidecar_children", MAX_TEXT + 1)}, {_TAKEN_AT}, {_OBSERVED_AT}
"""

# Two branches, because an index on (profile_id, taken_at) read backwards gives NULLs first: with NULLS LAST in one
# query Postgres would sort all posts of a profile to find twelve.
_LATEST_POSTS = sa.text(f"""
    SELECT {_BOUNDED_POST} FROM unnest(CAST(:profile_ids AS uuid[])) AS wanted(profile)
    CROSS JOIN LATERAL (
        SELECT * FROM (
            (SELECT {_POST} FROM posts WHERE profile_id = wanted.profile AND taken_at IS NOT NULL
             ORDER BY taken_at DESC LIMIT :posts)
            UNION ALL
            (SELECT {_POST} FROM posts WHERE profile_id = wanted.profile AND taken_at IS NULL LIMIT :posts)
        ) AS dated_first ORDER BY taken_at DESC NULLS LAST, id LIMIT :posts
    ) AS latest
""")

_IN_UTC = sa.text("SET LOCAL TIME ZONE 'UTC'")


def shard_of(profile_id: uuid.UUID) -> str:
    """The shard of an owner: two hex digits, `00` to `3f`."""
    return f"{profile_id.int >> _SHARD_SHIFT:02x}"


def shard_bounds(first: str, last: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The first and the last UUID of a range of shards, both inclusive."""
    start = int(first, 16) << _SHARD_SHIFT
    end = ((int(last, 16) + 1) << _SHARD_SHIFT) - 1
    return uuid.UUID(int=start), uuid.UUID(int=end)


@dataclass(slots=True)
class SourceBatch:
    """References found in some profiles, all of them in shards from the previous batch's last on, in order.

    `problems` counts what could not be used, by kind; `samples` says it in words.
    """

    references: list[ImageReference] = field(default_factory=list)
    profiles: Counter[str] = field(default_factory=Counter)  # by shard
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (shard, kind)
    samples: list[tuple[str, str]] = field(default_factory=list)  # (shard, words)


class SourceSchemaError(Exception):
    """The application database lacks a table or column of the contract; the message says which and what to do."""


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction in the application database, with UTC as its time zone: times without a zone are meant so.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    try:
        with engine.connect() as connection:
            connection.execute(_IN_UTC)
            yield connection
    except sa.exc.ProgrammingError as error:
        reason = str(error.orig).partition("\n")[0]
        raise SourceSchemaError(
            f"the application database at {engine.url.render_as_string(hide_password=True)} is not as expected: "
            f"{reason}. Point SOURCE_DATABASE_URL at the database that has `profiles` and `posts` (views will do), "
            "or run `make demo` for one that has."
        ) from error


def read_references(engine: sa.Engine, first_shard: str, last_shard: str) -> Iterator[SourceBatch]:
    """Yields the references of a contiguous range of shards, batch by batch, in the order of shards.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    after, last = shard_bounds(first_shard, last_shard)
    query = _FIRST_PROFILE
    while True:
        with reading(engine) as connection:
            parameters = {"after": after, "last": last, "batch": PROFILES_PER_BATCH}
            profiles = connection.execute(query, parameters).mappings().all()
            if not profiles:
                return
            batch = _with_posts(connection, profiles)
        yield batch  # with no transaction left open in the application's database meanwhile
        after, query = profiles[-1]["id"], _PROFILES


def read_profiles(engine: sa.Engine, profile_ids: Sequence[uuid.UUID]) -> SourceBatch:
    """The references of these profiles, each read whole; those that are no longer there are left out.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    with reading(engine) as connection:
        profiles = connection.execute(_THESE_PROFILES, {"profile_ids": list(profile_ids)}).mappings().all()
        return _with_posts(connection, profiles)


def read_usernames(engine: sa.Engine, profile_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, str]:
    """The user names of these profiles; those that are no longer there, or have none, are left out.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    with reading(engine) as connection:
        rows = connection.execute(_USERNAMES, {"profile_ids": list(profile_ids)})
        return {row.id: row.username.strip() for row in rows}


def _with_posts(connection: sa.Connection, profiles: Sequence[Any]) -> SourceBatch:
    batch = SourceBatch()
    by_profile: dict[uuid.UUID, list[Any]] = {row["id"]: [] for row in profiles}
    for post in connection.execute(_LATEST_POSTS, {"profile_ids": list(by_profile), "posts": LATEST_POSTS}).mappings():
        by_profile[post["profile_id"]].append(post)
    for profile in profiles:
        _Reader(batch, profile["id"]).read(profile, by_profile[profile["id"]])
    return batch


@dataclass(slots=True)
class _Reader:
    """Turns one profile's rows into references."""

    batch: SourceBatch
    profile_id: uuid.UUID

    def read(self, profile: Any, posts: Sequence[Any]) -> None:
        self.batch.profiles[self._shard] += 1
        self._add(
            ImageKey("profile_avatar", str(self.profile_id), "avatar"),
            self._urls("profiles", profile, "profile_pic_url_hd", "profile_pic_url"),
            profile["updated_at"],
            missing=f"profiles {self.profile_id} has no picture URL",
        )
        for post in posts:
            self._read_post(post)

    def _read_post(self, post: Any) -> None:
        source_id = str(post["id"])
        if not post["media_id"]:
            self._problem("no_media_id", f"posts {source_id} has no media_id")
            return
        urls = self._urls("posts", post, "display_url", "thumbnail_src")
        self._add(
            ImageKey("post_thumbnail", source_id, media_key(post["media_id"])),
            urls,
            post["updated_at"],
            missing=f"posts {source_id} has no picture URL",
            taken_at=post["taken_at"],
        )
        own = {url.identity for url in urls}
        children = read_children(post["sidecar_children"])
        if children.problem:
            kind, words = children.problem
            self._problem(kind, f"posts {source_id} {words}")
        for child in children.nodes:
            self._read_child(post, child, own)

    def _read_child(self, post: Any, child: Mapping[str, Any], own: Set[str]) -> None:
        """A child that shows the post's own picture (one of the identities `own`) is no second image."""
        where = f"posts {post['id']} carousel child"
        child_id = str(child.get("id") or "")
        if not child_id:
            self._problem("bad_sidecar_children", f"{where} has no id")
            return
        urls = self._parse_all([str(child.get("display_url") or "")], where)
        if urls and urls[0].identity in own:
            return
        self._add(
            ImageKey("post_carousel", str(post["id"]), media_key(child_id)),
            urls,
            post["updated_at"],
            missing=f"{where} {child_id} has no picture URL",
            taken_at=post["taken_at"],
        )

    def _urls(self, table: str, row: Any, *columns: str) -> list[SourceUrl]:
        return self._parse_all([row[column] for column in columns], f"{table} {row['id']}")

    def _parse_all(self, raw_urls: Sequence[str | None], where: str) -> list[SourceUrl]:
        urls: list[SourceUrl] = []
        for raw in raw_urls:
            if not raw or not raw.strip():
                continue
            try:
                urls.append(parse(raw))
            except ValueError as error:
                self._problem("bad_url", f"{where}: {error}")
        return urls

    def _add(
        self,
        key: ImageKey,
        urls: Sequence[SourceUrl],
        observed_at: datetime,
        *,
        missing: str,
        taken_at: datetime | None = None,
    ) -> None:
        if not urls:
            self._problem("no_url", missing)
            return
        self.batch.references.append(
            ImageReference(
                key=key,
                owner_id=str(self.profile_id),
                shard=self._shard,
                taken_at=taken_at and _utc(taken_at),
                candidates=tuple(urls),
                observed_at=observed_at,
            )
        )

    @property
    def _shard(self) -> str:
        return shard_of(self.profile_id)

    def _problem(self, kind: str, words: str) -> None:
        self.batch.problems[self._shard, kind] += 1
        printable = "".join(character for character in words if character.isprintable())
        self.batch.samples.append((self._shard, printable[:_MAX_WORDS]))


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
