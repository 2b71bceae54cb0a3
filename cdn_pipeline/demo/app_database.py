"""The demo's application database: profiles and posts whose image URLs expire, and what happens to them over time."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
    Uuid,
    bindparam,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from cdn_pipeline.demo.pictures import AVATARS_FOLDER, Picture
from cdn_pipeline.demo.rows import POST_SPOILERS, PROFILE_SPOILERS, Row, RowMaker, spoil
from cdn_pipeline.demo.signing import Signer

metadata = MetaData()

profiles_table = Table(
    "profiles",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("username", Text, nullable=False),
    Column("profile_pic_url", Text),
    Column("profile_pic_url_hd", Text),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Index("idx_profiles_updated_at", "updated_at"),
)

posts_table = Table(
    "posts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("profile_id", Uuid, ForeignKey("profiles.id"), nullable=False),
    Column("media_id", Text, nullable=False),
    Column("display_url", Text),
    Column("thumbnail_src", Text),
    Column("sidecar_children", JSONB(none_as_null=True)),
    Column("taken_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Index("idx_posts_updated_at", "updated_at"),
    Index("idx_posts_profile_taken", "profile_id", "taken_at"),
)


@dataclass(frozen=True, slots=True)
class Population:
    """The ids of what `populate` wrote, in the order of writing."""

    profile_ids: Sequence[uuid.UUID]
    post_ids: Sequence[uuid.UUID]


def create_tables(engine: Engine) -> None:
    """Creates `profiles` and `posts` with their indexes where they are missing."""
    metadata.create_all(engine)


def drop_tables(engine: Engine) -> None:
    """Drops `profiles` and `posts` with all their rows."""
    metadata.drop_all(engine)


def populate(
    engine: Engine,
    signer: Signer,
    *,
    profiles: int = 44,
    posts_per_profile: int = 12,
    seed: int = 1,
    now: datetime | None = None,
    nasty_rows: bool = True,
) -> Population:
    """Fills the tables; the same seed and `now` give the same rows.

    Profiles spread over all shards. About one post in eight is a carousel of two to four pictures, the first of which
    is the post's own. `now` is when the URLs are signed (the present if None). `nasty_rows` spoils a few rows in the
    ways of real ones and adds posts older than the latest; without it every URL is good.
    """
    maker = RowMaker.seeded(signer, seed, now or datetime.now(UTC))
    profile_rows = [maker.profile() for _ in range(profiles)]
    post_rows = [post for row in profile_rows for post in maker.posts_of(row["id"], posts_per_profile)]
    if nasty_rows:
        spoil(profile_rows, PROFILE_SPOILERS, maker.chance)
        spoil(post_rows, POST_SPOILERS, maker.chance)
        post_rows += [maker.forgotten_post(row["id"]) for row in profile_rows[:3]]
    _insert(engine, profile_rows, post_rows)
    return Population([row["id"] for row in profile_rows], [row["id"] for row in post_rows])


def add_profile(
    engine: Engine, signer: Signer, *, seed: int, posts: int = 12, now: datetime | None = None
) -> uuid.UUID:
    """Adds a profile with posts; another seed gives another one."""
    maker = RowMaker.seeded(signer, f"profile {seed}", now or datetime.now(UTC))
    row = maker.profile()
    _insert(engine, [row], maker.posts_of(row["id"], posts))
    profile_id: uuid.UUID = row["id"]
    return profile_id


def add_post(
    engine: Engine,
    signer: Signer,
    profile_id: uuid.UUID,
    *,
    now: datetime | None = None,
    signed_at: datetime | None = None,
) -> uuid.UUID:
    """Adds a post of this profile, taken `now`. Its URLs are as old as `signed_at` says (just signed if None)."""
    now = now or datetime.now(UTC)
    maker = RowMaker.seeded(signer, f"{profile_id} {now}", signed_at or now)
    row = maker.post(profile_id, taken_at=now) | {"updated_at": now}
    _insert(engine, [], [row])
    post_id: uuid.UUID = row["id"]
    return post_id


def delete_post(engine: Engine, post_id: uuid.UUID) -> None:
    """Deletes the row of a post. (`Origin.delete_picture` deletes a picture behind the application's back.)"""
    with engine.begin() as connection:
        connection.execute(posts_table.delete().where(posts_table.c.id == post_id))


def replace_avatar(engine: Engine, signer: Signer, profile_id: uuid.UUID, *, now: datetime | None = None) -> Picture:
    """Gives the profile another picture, under another file name; returns that picture."""
    now = now or datetime.now(UTC)
    maker = RowMaker.seeded(signer, f"{profile_id} {now}", now)
    picture = Picture.invent(AVATARS_FOLDER, maker.chance)
    change = maker.avatar_urls(picture) | {"updated_at": now}
    with engine.begin() as connection:
        connection.execute(profiles_table.update().where(profiles_table.c.id == profile_id).values(change))
    return picture


def resign_all(engine: Engine, signer: Signer, *, now: datetime | None = None) -> None:
    """Signs every URL of both tables again, as if all profiles had just been fetched anew.

    The pictures stay the same; their URLs are others and expire later. What carries no expiry stays as it is.
    """
    _resign(engine, signer, now or datetime.now(UTC), true(), true())


def resign_profile(engine: Engine, signer: Signer, profile_id: uuid.UUID, *, now: datetime | None = None) -> None:
    """Signs the URLs of one profile and of its posts again, as if it had just been fetched anew."""
    of_profile, of_posts = profiles_table.c.id == profile_id, posts_table.c.profile_id == profile_id
    _resign(engine, signer, now or datetime.now(UTC), of_profile, of_posts)


def _resign(
    engine: Engine,
    signer: Signer,
    now: datetime,
    of_profiles: ColumnElement[bool],
    of_posts: ColumnElement[bool],
) -> None:
    wanted = ((profiles_table, _PROFILE_URLS, of_profiles), (posts_table, _POST_URLS, of_posts))
    with engine.begin() as connection:
        for table, columns, which in wanted:
            query = select(table.c.id, *(table.c[column] for column in columns)).where(which)
            rows = connection.execute(query).mappings().all()
            changes = [_signed_again(signer, dict(row), columns, now) for row in rows]
            if changes:
                update = table.update().where(table.c.id == bindparam("row_id"))
                connection.execute(update.values({name: bindparam(name) for name in (*columns, "updated_at")}), changes)


_PROFILE_URLS = ("profile_pic_url", "profile_pic_url_hd")
_POST_URLS = ("display_url", "thumbnail_src", "sidecar_children")


def _signed_again(signer: Signer, row: Row, columns: Sequence[str], now: datetime) -> Row:
    expires_at = RowMaker.seeded(signer, f"{row['id']} {now}", now).expiry()
    fresh = {name: _map_strings(row[name], lambda text: signer.sign_again(text, expires_at)) for name in columns}
    return {"row_id": row["id"], "updated_at": now} | fresh


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string in it changed."""
    match value:
        case str():
            return change(value)
        case list():
            return [_map_strings(item, change) for item in value]
        case dict():
            return {key: _map_strings(item, change) for key, item in value.items()}
        case _:
            return value


def _insert(engine: Engine, profile_rows: list[Row], post_rows: list[Row]) -> None:
    with engine.begin() as connection:
        for table, rows in ((profiles_table, profile_rows), (posts_table, post_rows)):
            if rows:
                connection.execute(table.insert(), rows)
