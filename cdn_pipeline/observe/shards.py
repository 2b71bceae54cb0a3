"""The state of each shard: how many images it has, how many the public sees, and what is left to do."""

from dataclasses import dataclass

import sqlalchemy as sa

from cdn_pipeline.collections import SHARDS, Collection
from cdn_pipeline.queue.due import IS_DUE
from cdn_pipeline.queue.states import ImageStatus


@dataclass(frozen=True, slots=True)
class ShardState:
    """Images of one shard; `failed` for good, `due` counts jobs."""

    shard: str
    images: int
    published: int
    due: int
    failed: int

    @property
    def unpublished_share(self) -> float:
        """Of its images, 0 to 1; 0 if it has none."""
        return 1 - self.published / self.images if self.images else 0.0


def shard_states(connection: sa.Connection, collection: Collection) -> tuple[ShardState, ...]:
    """All shards in order, also those without images. Reads the shard of every image."""
    values = {"collection": collection.name, "shards": list(SHARDS)}
    return tuple(ShardState(**row) for row in connection.execute(_SHARDS, values).mappings())


# What was completed once stays visible, whatever became of the image later.
_SHARDS = sa.text(f"""
    WITH every AS (
        SELECT shard, count(*) AS images FROM cdn_image_assets WHERE collection = :collection GROUP BY shard
    ), unfinished AS (
        SELECT shard, count(*) FILTER (WHERE processing_completed_at IS NULL) AS unpublished,
               count(*) FILTER (WHERE processing_status = '{ImageStatus.FAILED}') AS failed
        FROM cdn_image_assets
        WHERE collection = :collection AND processing_status <> '{ImageStatus.COMPLETED}' GROUP BY shard
    ), due AS (
        SELECT shard, count(*) AS jobs FROM cdn_image_jobs
        WHERE collection = :collection AND {IS_DUE} GROUP BY shard
    )
    SELECT shard, coalesce(images, 0) AS images, coalesce(images, 0) - coalesce(unpublished, 0) AS published,
           coalesce(jobs, 0) AS due, coalesce(failed, 0) AS failed
    FROM unnest(CAST(:shards AS text[])) AS shards(shard)
    LEFT JOIN every USING (shard) LEFT JOIN unfinished USING (shard) LEFT JOIN due USING (shard)
    ORDER BY shard
""")
