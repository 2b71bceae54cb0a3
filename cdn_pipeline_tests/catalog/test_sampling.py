"""Whatever draws from the catalog at random, draws old and new images alike."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.sampling import at_random, random_start
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.comparison import draw_sample
from cdn_pipeline.observe.probes import draw_targets
from cdn_pipeline.observe.samples import sample_pictures
from cdn_pipeline.upkeep.stores import Part
from cdn_pipeline.upkeep.verify import Verification

IMAGES = 400
DRAWN = 4
DRAWS = 200


def fill(catalog: sa.Engine, original: str) -> None:
    """Images numbered from 0, one after the other, in two sizes; `original` is SQL for what the hash is of."""
    with catalog.begin() as connection:
        for statement in (_IMAGES.format(original=original), _RENDITIONS):
            connection.execute(sa.text(statement), {"images": IMAGES})
        connection.execute(sa.text("ANALYZE"))


_IMAGES = """
    INSERT INTO cdn_image_assets (collection, shard, owner_id, source_type, source_id, media_id, source_url, identity,
                                  rank, observed_at, original_sha256, processing_status, processing_completed_at)
    SELECT 'instagram', '00', 'owner', 'post_thumbnail', number, number, 'http://x/', 'identity', 1, now(),
           encode(sha256(CAST({original} AS bytea)), 'hex'), 'completed', now()
    FROM generate_series(0, :images - 1) AS number
"""
_RENDITIONS = """
    INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash, path,
                                      original_sha256, recipe, recipe_version, encoder, state)
    SELECT id, size, 'webp', 256, 256, 7, 'hash', '/th/' || media_id || '/' || size || '.webp', original_sha256,
           'recipe', 1, 'encoder', 'current'
    FROM cdn_image_assets, unnest(ARRAY['256', '512']) AS size ORDER BY CAST(media_id AS int), size
"""


def number_of(path: str) -> int:
    return int(path.split("/")[2])


def pictures(catalog: sa.Engine) -> Iterable[int]:
    with catalog.connect() as connection:
        return [int(picture.media_id) for picture in sample_pictures(connection, "00", "256", DRAWN)]


def probes(catalog: sa.Engine) -> Iterable[int]:
    with catalog.connect() as connection:
        return [number_of(target.path) for target in draw_targets(connection, DRAWN)]


def pairs(catalog: sa.Engine) -> Iterable[int]:
    with catalog.connect() as connection:
        return [number_of(pair.rendition.path) for pair in draw_sample(connection, INSTAGRAM, DRAWN).pairs]


def verified(part: Part, catalog: sa.Engine) -> Iterable[int]:
    (batch,) = Verification(catalog, INSTAGRAM, {}, sample=DRAWN)._batches(part)
    with catalog.connect() as connection:
        query = sa.text("SELECT CAST(media_id AS int) FROM cdn_image_assets WHERE id = :asset_id")
        return [connection.execute(query, {"asset_id": row["asset_id"]}).scalar_one() for row in batch]


SAMPLERS = {
    "pictures": pictures,
    "probes": probes,
    "pairs": pairs,
    "verified originals": partial(verified, Part.ORIGINALS),
    "verified renditions": partial(verified, Part.RENDITIONS),
}


def assert_all_ages_alike(numbers: Sequence[int]) -> None:
    assert len(numbers) == DRAWS * DRAWN
    quarters = Counter(4 * number // IMAGES for number in numbers)
    for quarter in range(4):  # 0.25 each; 0.1 is more than three standard deviations
        assert 0.15 < quarters[quarter] / len(numbers) < 0.35


@pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS)
def test_old_and_new_images_are_drawn_alike(catalog: sa.Engine, draw: Callable[[sa.Engine], Iterable[int]]) -> None:
    fill(catalog, "CAST(number AS text)")
    random.seed(0)
    assert_all_ages_alike([number for _ in range(DRAWS) for number in draw(catalog)])


@pytest.mark.parametrize("draw", SAMPLERS.values(), ids=SAMPLERS)
def test_images_that_share_an_original_are_drawn_alike(
    catalog: sa.Engine, draw: Callable[[sa.Engine], Iterable[int]]
) -> None:
    fill(catalog, "'the avatar of whoever has none'")
    assert_all_ages_alike([number for _ in range(DRAWS) for number in draw(catalog)])


def test_a_sample_is_read_by_the_index_of_originals(catalog: sa.Engine) -> None:
    fill(catalog, "CAST(number AS text)")
    query = at_random("SELECT id FROM cdn_image_assets WHERE true", "original_sha256")
    with catalog.connect() as connection:
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        plan = connection.scalars(sa.text(f"EXPLAIN {query}"), {"start": random_start(), "count": DRAWN}).all()
    assert sum("Presorted Key: cdn_image_assets" in line for line in plan) == 2
    assert not [line for line in plan if "Seq Scan" in line]
