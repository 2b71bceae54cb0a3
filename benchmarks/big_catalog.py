"""A catalog of as many published images as asked for, as production's would look, and the source rows that they came
from: made in SQL, some 6,000 images a second.
"""

from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.sources.app_database import shard_bounds

IMAGES_PER_PROFILE = 10  # an avatar and nine posts


def fill(engine: sa.Engine, images: int) -> None:
    """Adds profiles with ids that `profile_id` gives, all images completed, two sizes each, one finished job each.

    The jobs ended in the 30 days before yesterday, as many in each hour.
    """
    values = {"profiles": images // IMAGES_PER_PROFILE, "collection": INSTAGRAM.name, "recipe": INSTAGRAM.recipe.name}
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
        for statement in (_ASSETS, _RENDITIONS, _JOBS):
            connection.execute(statement, values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE cdn_image_assets, cdn_image_renditions, cdn_image_jobs"))


def fill_source(engine: sa.Engine) -> None:
    """Adds `profiles` and `posts`, as they were when all images of the catalog were seen, to the same database.

    They were last updated at some time of the month before yesterday.
    """
    create_tables(engine)
    with engine.begin() as connection:
        for statement in (_PROFILES, _POSTS):
            connection.execute(statement)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE profiles, posts"))


def sign_again(engine: sa.Engine, first_shard: str, last_shard: str) -> None:
    """Signs the URLs of these shards' source rows again: they expire an hour later; nothing says when that was."""
    first, last = shard_bounds(first_shard, last_shard)
    with engine.begin() as connection:
        for statement in (_SIGN_PROFILES_AGAIN, _SIGN_POSTS_AGAIN):
            connection.execute(statement, {"first": first, "last": last})


def end_within(engine: sa.Engine, hour: datetime, jobs: int) -> None:
    """Moves the end of so many finished jobs into the hour that begins at `hour`."""
    with engine.begin() as connection:
        connection.execute(_END_WITHIN, {"hour": hour, "jobs": jobs})


def profile_id(number: int) -> str:
    """The id of profile `number`, counted from 0: spread over all shards."""
    return f"{number * 2_654_435_761 % 2**32:08x}-0000-4000-8000-{number:012x}"


_PROFILE_ID = "lpad(to_hex(n * 2654435761 % 4294967296), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(n), 12, '0')"

# Signed URLs of production are about as long, and rows as wide; what they say of the picture is what the columns say.
_ASSETS = sa.text(f"""
    INSERT INTO cdn_image_assets (
        collection, shard, owner_id, source_type, source_id, media_id, taken_at, source_url, identity, rank,
        url_expires_at, observed_at, original_sha256, original_identity, original_rank, original_width, original_height,
        original_format, original_file_size, placeholder, processing_status, processing_completed_at)
    SELECT :collection, lpad(to_hex(get_byte(decode(left(owner, 2), 'hex'), 0) / 4), 2, '0'), owner,
           CASE WHEN i = 0 THEN 'profile_avatar' ELSE 'post_thumbnail' END,
           CASE WHEN i = 0 THEN owner ELSE left(owner, 24) || lpad(to_hex(n * 16 + i), 12, '0') END,
           CASE WHEN i = 0 THEN 'avatar' ELSE (3000000000000000000 + n * 16 + i)::text END,
           CASE WHEN i > 0 THEN now() - make_interval(days => i) END,
           'https://scontent.cdninstagram.com/v/t51.2885-15/' || name || '.jpg?stp=dst-jpg_s1080x1080&oh='
               || repeat('x', 250) || '&oe=' || upper(to_hex(extract(epoch FROM expires_at)::bigint)),
           'file:' || name, 101080, expires_at, now(),
           encode(sha256((n || '/' || i)::bytea), 'hex'), 'file:' || name, 101080, 1080, 1080, 'jpeg', 110000,
           'LEHV6nWB2yk8pyo0adR*.7kCMdnj', 'completed', now()
    FROM generate_series(0::bigint, :profiles - 1) AS n, LATERAL (SELECT {_PROFILE_ID} AS owner) AS o,
         generate_series(0, {IMAGES_PER_PROFILE - 1}) AS i,
         LATERAL (SELECT n || '_' || i || '_n' AS name) AS u,
         LATERAL (SELECT date_trunc('second', now()) + interval '3 days' AS expires_at) AS e
""")

_RENDITIONS = sa.text("""
    INSERT INTO cdn_image_renditions (
        asset_id, size_name, format, width, height, file_size, content_hash, path, original_sha256, recipe,
        recipe_version, encoder, state, published_at)
    SELECT a.id, size, 'webp', size::int, size::int, 20000, hash,
           '/th/ig/' || a.owner_id || '/' || a.media_id || '/' || size || '/' || left(hash, 16) || '.webp',
           a.original_sha256, :recipe, 1, 'pillow', 'current', now()
    FROM cdn_image_assets a, unnest(ARRAY['256', '512']) AS size,
         LATERAL (SELECT encode(sha256((a.id || size)::bytea), 'hex') AS hash) AS h
""")

_JOBS = sa.text("""
    INSERT INTO cdn_image_jobs (
        asset_id, collection, shard, job_type, priority, stage, source_url, status, created_at, completed_at,
        download_ms, transcode_ms, upload_ms, bytes_in, bytes_out)
    SELECT id, collection, shard, 'ingest', 4, 'publish', source_url, 'completed', ended_at - interval '10 seconds',
           ended_at, 300, 80, 40, 110000, 40000
    FROM (SELECT *, now() - interval '1 day' - random() * interval '30 days' AS ended_at FROM cdn_image_assets) AS a
""")

_UPDATED_AT = "now() - interval '1 day' - random() * interval '30 days'"

_PROFILES = sa.text(f"""
    INSERT INTO profiles (id, username, profile_pic_url_hd, updated_at)
    SELECT source_id::uuid, 'profile', source_url, {_UPDATED_AT}
    FROM cdn_image_assets WHERE source_type = 'profile_avatar'
""")

_POSTS = sa.text(f"""
    INSERT INTO posts (id, profile_id, media_id, display_url, taken_at, updated_at)
    SELECT source_id::uuid, owner_id::uuid, media_id, source_url, taken_at, {_UPDATED_AT}
    FROM cdn_image_assets WHERE source_type = 'post_thumbnail'
""")


def _signed_again(url: str) -> str:
    expiry = f"('x' || lpad(substring({url} from 'oe=([0-9A-F]+)'), 16, '0'))::bit(64)::bigint"
    return f"regexp_replace({url}, 'oe=[0-9A-F]+', 'oe=' || upper(to_hex({expiry} + 3600)))"


_SIGN_PROFILES_AGAIN = sa.text(f"""
    UPDATE profiles SET profile_pic_url_hd = {_signed_again("profile_pic_url_hd")} WHERE id BETWEEN :first AND :last
""")

_SIGN_POSTS_AGAIN = sa.text(f"""
    UPDATE posts SET display_url = {_signed_again("display_url")} WHERE profile_id BETWEEN :first AND :last
""")

_END_WITHIN = sa.text("""
    UPDATE cdn_image_jobs AS j
    SET created_at = ended_at - interval '10 seconds', completed_at = ended_at,
        busy = tstzmultirange(tstzrange(ended_at - interval '1 second', ended_at))
    FROM (
        SELECT id, CAST(:hour AS timestamptz) + random() * interval '3590 seconds' + interval '10 seconds' AS ended_at
        FROM cdn_image_jobs WHERE status = 'completed' LIMIT :jobs
    ) AS moved
    WHERE j.id = moved.id
""")
