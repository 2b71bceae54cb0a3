"""Small samples of the catalog: pictures to look at."""

from dataclasses import dataclass

import sqlalchemy as sa

from cdn_pipeline.catalog.sampling import at_random, random_start


@dataclass(frozen=True, slots=True)
class SamplePicture:
    """One published image."""

    source_type: str
    media_id: str
    url: str
    width: int
    height: int
    file_size: int


@dataclass(frozen=True, slots=True)
class ShardState:
    """How many images a shard has, and how many of them have been published."""

    images: int
    published: int


def shard_state(connection: sa.Connection, shard: str) -> ShardState:
    """Counts the shard's images, whatever the last run did."""
    return ShardState(**connection.execute(_SHARD_STATE, {"shard": shard}).mappings().one())


_SHARD_STATE = sa.text("""
    SELECT count(*) AS images, count(processing_completed_at) AS published FROM cdn_image_assets WHERE shard = :shard
""")


def sample_pictures(connection: sa.Connection, shard: str, size_name: str, count: int) -> list[SamplePicture]:
    """Up to `count` of the shard's published images in one size, drawn at random."""
    values = {"shard": shard, "size_name": size_name, "start": random_start(), "count": count}
    return [SamplePicture(**row) for row in connection.execute(_PICTURES, values).mappings()]


_PUBLISHED = """
    SELECT a.source_type, a.media_id, r.path, r.width, r.height, r.file_size
    FROM cdn_image_assets a
    JOIN cdn_image_renditions r ON r.asset_id = a.id AND r.state = 'current'
         AND r.size_name = :size_name AND r.format = 'webp'
    WHERE a.shard = :shard
"""
_PICTURES = sa.text(f"""
    SELECT source_type, media_id, base_url || path AS url, width, height, file_size
    FROM ({at_random(_PUBLISHED, "a.original_sha256")}) AS picture CROSS JOIN cdn_delivery
""")
