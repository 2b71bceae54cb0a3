"""Samples of a catalog that is filled by hand."""

from collections.abc import Iterable

import pytest
import sqlalchemy as sa

from cdn_pipeline.observe.samples import sample_pictures
from cdn_pipeline_tests.pipelines import BASE_URL

IMAGES = 30


def fill(catalog: sa.Engine, shards: Iterable[str]) -> None:
    """Thirty images in each shard; both sizes are current, and one of an older recipe is superseded."""
    with catalog.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_assets (collection, shard, owner_id, source_type, source_id, media_id, source_url,
                                              identity, rank, observed_at, original_sha256, processing_status)
                SELECT 'instagram', shard, 'owner', 'post_thumbnail', shard || number, 'media' || number, 'http://x/',
                       'identity', 1, now(), encode(sha256((shard || number)::bytea), 'hex'), 'completed'
                FROM unnest(CAST(:shards AS text[])) AS shard, generate_series(1, :images) AS number
            """),
            {"shards": list(shards), "images": IMAGES},
        )
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash,
                                                  path, original_sha256, recipe, recipe_version, encoder, state)
                SELECT id, size, 'webp', 256, 200, 7, 'hash', '/th/' || source_id || '/' || size || state,
                       original_sha256, 'recipe', 1, 'encoder', state
                FROM cdn_image_assets,
                     (VALUES ('256', 'current'), ('512', 'current'), ('256', 'superseded')) AS made(size, state)
            """)
        )


# -- pictures --


def test_pictures_are_current_renditions_of_the_shard_in_the_wanted_size(catalog: sa.Engine) -> None:
    fill(catalog, ["00", "01"])
    with catalog.connect() as connection:
        pictures = sample_pictures(connection, "01", "256", 4)
    assert len({picture.media_id for picture in pictures}) == 4
    for picture in pictures:
        number = picture.media_id.removeprefix("media")
        assert picture.url == f"{BASE_URL}/th/01{number}/256current"
        assert (picture.width, picture.height, picture.file_size) == (256, 200, 7)


@pytest.mark.parametrize(("wanted", "given"), [(IMAGES - 1, IMAGES - 1), (IMAGES, IMAGES), (IMAGES + 5, IMAGES)])
def test_there_are_as_many_pictures_as_wanted_or_all(catalog: sa.Engine, wanted: int, given: int) -> None:
    fill(catalog, ["00"])
    with catalog.connect() as connection:
        for _ in range(10):  # each begins at another random place
            pictures = sample_pictures(connection, "00", "256", wanted)
            assert len({picture.media_id for picture in pictures}) == len(pictures) == given


def test_an_empty_shard_has_no_pictures(catalog: sa.Engine) -> None:
    with catalog.connect() as connection:
        assert sample_pictures(connection, "00", "256", 4) == []


def test_samples_differ(catalog: sa.Engine) -> None:
    fill(catalog, ["00"])
    with catalog.connect() as connection:
        seen = {picture.media_id for _ in range(30) for picture in sample_pictures(connection, "00", "256", 4)}
    assert len(seen) > 4
