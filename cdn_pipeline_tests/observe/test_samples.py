"""Samples of a catalog that is filled by hand, beside real object stores."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.observe.samples import inspect_published_objects, sample_pictures
from cdn_pipeline.store.objects import ObjectStore
from cdn_pipeline_tests.pipelines import BASE_URL
from cdn_pipeline_tests.s3 import moto_server, object_store, rclone_server

__all__ = ["moto_server", "object_store", "rclone_server"]

IMAGES = 30


def fill(catalog: sa.Engine, shards: Iterable[str]) -> None:
    """Thirty images in each shard; both sizes are current, and one of an older recipe is superseded."""
    with catalog.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_assets (collection, shard, owner_id, source_type, source_id, media_id, source_url,
                                              identity, rank, observed_at, processing_status)
                SELECT 'instagram', shard, 'owner', 'post_thumbnail', shard || number, 'media' || number, 'http://x/',
                       'identity', 1, now(), 'completed'
                FROM unnest(CAST(:shards AS text[])) AS shard, generate_series(1, :images) AS number
            """),
            {"shards": list(shards), "images": IMAGES},
        )
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_renditions (asset_id, size_name, format, width, height, file_size, content_hash,
                                                  path, original_sha256, recipe, recipe_version, encoder, state)
                SELECT id, size, 'webp', 256, 200, 7, 'hash', '/th/' || source_id || '/' || size || state, 'sha256',
                       'recipe', 1, 'encoder', state
                FROM cdn_image_assets,
                     (VALUES ('256', 'current'), ('512', 'current'), ('256', 'superseded')) AS made(size, state)
            """)
        )


def current_paths(catalog: sa.Engine) -> list[str]:
    with catalog.connect() as connection:
        return list(connection.scalars(sa.text("SELECT path FROM cdn_image_renditions WHERE state = 'current'")))


async def store_all(store: ObjectStore, paths: Iterable[str], data: bytes) -> None:
    for path in paths:
        await store.put_new(path.removeprefix("/"), data, content_type="image/webp")


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


# -- objects --


@pytest.mark.parametrize("object_store", ["file", "moto"], indirect=True)
def test_objects_that_are_missing_or_of_another_size_are_found(catalog: sa.Engine, object_store: ObjectStore) -> None:
    fill(catalog, ["00"])
    missing, wrong, *right = sorted(current_paths(catalog))
    asyncio.run(store_all(object_store, right, b"7 bytes"))
    asyncio.run(store_all(object_store, [wrong], b"6 byte"))
    with catalog.connect() as connection:
        inspection = inspect_published_objects(connection, object_store, 1000)
    assert inspection.inspected == 2 * IMAGES
    assert sorted(inspection.missing) == [missing, wrong]


def test_no_more_objects_are_inspected_than_asked_for(catalog: sa.Engine, tmp_path: Path) -> None:
    fill(catalog, ["00"])
    store = ObjectStore.from_url(tmp_path.as_uri())
    with catalog.connect() as connection:
        inspection = inspect_published_objects(connection, store, 10)
    assert inspection.inspected == 10
    assert len(set(inspection.missing)) == 10


def test_of_an_empty_catalog_nothing_is_missing(catalog: sa.Engine, tmp_path: Path) -> None:
    with catalog.connect() as connection:
        inspection = inspect_published_objects(connection, ObjectStore.from_url(tmp_path.as_uri()), 10)
    assert (inspection.inspected, inspection.missing) == (0, ())
