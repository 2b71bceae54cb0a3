"""How much the stores hold, as far as the catalog knows."""

from dataclasses import dataclass

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes and objects of all collections; superseded renditions are counted until clean-up takes them."""

    rendition_bytes: int
    rendition_objects: int
    original_bytes: int
    original_objects: int

    @property
    def bytes(self) -> int:
        """Of both stores."""
        return self.rendition_bytes + self.original_bytes

    @property
    def objects(self) -> int:
        """Of both stores."""
        return self.rendition_objects + self.original_objects


def storage(connection: sa.Connection) -> Storage:
    """Adds up what rows name, an original that images share once; 0.35 s with 300,000 images of two renditions."""
    return Storage(**connection.execute(_STORAGE).mappings().one())


_STORAGE = sa.text("""
    WITH renditions AS (
        SELECT coalesce(sum(file_size), 0)::bigint AS bytes, count(*) AS objects FROM cdn_image_renditions
    ), originals AS (
        SELECT coalesce(sum(bytes), 0)::bigint AS bytes, count(*) AS objects FROM (
            SELECT max(original_file_size) AS bytes FROM cdn_image_assets
            WHERE original_sha256 IS NOT NULL GROUP BY original_sha256) AS distinct_originals
    )
    SELECT renditions.bytes AS rendition_bytes, renditions.objects AS rendition_objects,
           originals.bytes AS original_bytes, originals.objects AS original_objects
    FROM renditions CROSS JOIN originals
""")
