"""A catalog of as many published images as asked for, as production's would look: made in SQL, some 30,000 a second."""

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM

IMAGES_PER_PROFILE = 10  # an avatar and nine posts


def fill(engine: sa.Engine, images: int) -> None:
    """Adds profiles with ids that `profile_id` gives, all images completed, two sizes each, one finished job each."""
    values = {"profiles": images // IMAGES_PER_PROFILE, "collection": INSTAGRAM.name, "recipe": INSTAGRAM.recipe.name}
    with engine.begin() as connection:
        connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
        for statement in (_ASSETS, _RENDITIONS, _JOBS):
            connection.execute(statement, values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM ANALYZE cdn_image_assets, cdn_image_renditions, cdn_image_jobs"))


def profile_id(number: int) -> str:
    """The id of profile `number`, counted from 0: spread over all shards."""
    return f"{number * 2_654_435_761 % 2**32:08x}-0000-4000-8000-{number:012x}"


_PROFILE_ID = "lpad(to_hex(n * 2654435761 % 4294967296), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(n), 12, '0')"

# Signed URLs of production are about as long, and rows as wide.
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
           'https://scontent.cdninstagram.com/v/t51/' || n || '_' || i || '_n.jpg?' || repeat('x', 300),
           'file:' || n || '_' || i, 1080, now() + interval '3 days', now(),
           encode(sha256((n || '/' || i)::bytea), 'hex'), 'file:' || n || '_' || i, 1080, 1080, 1080, 'jpeg', 110000,
           'LEHV6nWB2yk8pyo0adR*.7kCMdnj', 'completed', now()
    FROM generate_series(0::bigint, :profiles - 1) AS n, LATERAL (SELECT {_PROFILE_ID} AS owner) AS o,
         generate_series(0, {IMAGES_PER_PROFILE - 1}) AS i
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
        asset_id, collection, shard, job_type, priority, stage, source_url, status, completed_at, download_ms,
        transcode_ms, upload_ms, bytes_in, bytes_out)
    SELECT id, collection, shard, 'ingest', 4, 'publish', source_url, 'completed',
           now() - random() * interval '30 days', 300, 80, 40, 110000, 40000
    FROM cdn_image_assets
""")
