"""What was erased leaves a restored catalog again, wherever the picture is found."""

import uuid
from datetime import UTC, datetime

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue.erasures import objects_to_delete, open_erasure, take_down
from cdn_pipeline.queue.restoration import (
    FoundImage,
    FoundOriginal,
    reopen_erasures,
    restore_images,
    take_down_erased,
)
from cdn_pipeline.queue.tombstones import set_image_tombstones
from cdn_pipeline.sources.discovery import ImageKey
from cdn_pipeline_tests.queue.catalogs import image, reference, see, source_url

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def erase(connection: sa.Connection) -> tuple[uuid.UUID, str]:
    """Erases the only image; returns its erasure and what identified its picture."""
    row = image(connection)
    erasure_id = set_image_tombstones(connection, INSTAGRAM, "owner", [row["id"]])
    open_erasure(connection, INSTAGRAM, erasure_id, "owner", scope="image", requested_by="us", reason="asked for")
    assert take_down(connection, erasure_id) == 1
    return erasure_id, row["identity"]


def found(place: str, identity: str) -> FoundImage:
    key = ImageKey("post_thumbnail", place, place)
    return FoundImage(key, "owner", "00", None, NOW, FoundOriginal("a" * 64, identity, 1))


def test_an_original_of_an_erased_picture_that_lies_in_another_place_is_kept_out_and_listed(
    connection: sa.Connection,
) -> None:
    see(connection, reference())
    erasure_id, identity = erase(connection)
    images = [found("another", identity)]
    assert list(restore_images(connection, INSTAGRAM, images, NOW).kept_out) == images
    assert reopen_erasures(connection, INSTAGRAM, images) == 1
    assert objects_to_delete(connection, erasure_id) == ["a" * 64]


def test_a_picture_that_nobody_can_identify_is_not_taken_for_an_erased_one(connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(sa.text("UPDATE cdn_image_assets SET identity = ''"))
    erasure_id, identity = erase(connection)
    images = [found("another", identity)]
    assert restore_images(connection, INSTAGRAM, images, NOW).new == 1
    assert reopen_erasures(connection, INSTAGRAM, images) == 0
    assert objects_to_delete(connection, erasure_id) == []
    assert take_down_erased(connection, INSTAGRAM) == 0


def test_an_erased_picture_leaves_a_backup_that_has_it_in_another_place(connection: sa.Connection) -> None:
    see(connection, reference())
    _, identity = erase(connection)
    see(connection, reference(source_url(picture="B"), image="another"))
    connection.execute(sa.text("UPDATE cdn_image_assets SET identity = :identity"), {"identity": identity})
    assert take_down_erased(connection, INSTAGRAM) == 1
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_assets")) == 0
