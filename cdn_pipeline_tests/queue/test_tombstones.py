import threading
import time
from collections.abc import Callable
from dataclasses import replace

import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue.erasures import open_erasure, take_down
from cdn_pipeline.queue.tombstones import (
    Candidate,
    bring_back,
    kept_out,
    remove_tombstones,
    set_image_tombstones,
    set_owner_tombstone,
    tombstones_of,
)
from cdn_pipeline.sources.discovery import ImageReference
from cdn_pipeline_tests.queue.catalogs import image, reference, see, source_url

PATIENCE_SECONDS = 20.0


def is_kept_out(connection: sa.Connection, *references: ImageReference) -> list[bool]:
    found = kept_out(connection, INSTAGRAM, [Candidate.of(each) for each in references])
    return [each.key in found for each in references]


def images(connection: sa.Connection) -> int:
    return connection.scalar(sa.text("SELECT count(*) FROM cdn_image_assets")) or 0


def test_an_owners_tombstone_keeps_out_all_of_the_owners_images_and_nobody_elses(connection: sa.Connection) -> None:
    set_owner_tombstone(connection, INSTAGRAM, "erased")
    avatar = reference(owner="erased", image="1")
    post = reference(source_url(picture="B"), owner="erased", image="2", source_type="post_thumbnail")
    other = reference(owner="other", image="3")
    assert is_kept_out(connection, avatar, post, other) == [True, True, False]
    see(connection, avatar, post, other)
    assert image(connection)["owner_id"] == "other"


def test_an_images_tombstone_keeps_out_its_place_and_the_picture_in_any_other_place_of_the_owners(
    connection: sa.Connection,
) -> None:
    see(connection, reference(source_url(picture="A"), image="1", source_type="post_thumbnail"))
    set_image_tombstones(connection, INSTAGRAM, "owner", [image(connection)["id"]])
    same_place = reference(source_url(picture="B"), image="1", source_type="post_thumbnail")
    same_picture = reference(source_url("b", picture="A"), image="2", source_type="post_carousel")
    other_owner = reference(source_url(picture="A"), image="3", owner="other")
    other_picture = reference(source_url(picture="C"), image="4")
    kept = is_kept_out(connection, same_place, same_picture, other_owner, other_picture)
    assert kept == [True, True, False, False]


def test_other_images_of_the_owners_that_show_the_same_picture_get_a_tombstone_too(connection: sa.Connection) -> None:
    see(connection, reference(image="1", source_type="post_thumbnail"), reference(image="2"))
    see(connection, reference(source_url(picture="B"), image="3"), reference(image="4", owner="other"))
    first = connection.scalars(sa.text("SELECT id FROM cdn_image_assets WHERE source_id = '1'")).one()
    erasure_id = set_image_tombstones(connection, INSTAGRAM, "owner", [first])
    assert {each.source_id for each in tombstones_of(connection, erasure_id)} == {"1", "2"}


def test_another_collection_is_not_touched(connection: sa.Connection) -> None:
    vehicles = replace(INSTAGRAM, name="vehicles")
    set_owner_tombstone(connection, vehicles, "owner")
    assert is_kept_out(connection, reference()) == [False]


def test_a_tombstone_that_is_set_twice_is_one_and_belongs_to_the_first_erasure(connection: sa.Connection) -> None:
    first = set_owner_tombstone(connection, INSTAGRAM, "owner")
    assert set_owner_tombstone(connection, INSTAGRAM, "owner") == first
    assert len(tombstones_of(connection, first)) == 1


def test_removed_tombstones_let_in_again_and_can_be_brought_back(connection: sa.Connection) -> None:
    see(connection, reference())
    erasure_id = set_image_tombstones(connection, INSTAGRAM, "owner", [image(connection)["id"]])
    before = tombstones_of(connection, erasure_id)
    assert bring_back(connection, before) == 0
    assert remove_tombstones(connection, erasure_id) == 1
    assert is_kept_out(connection, reference()) == [False]
    assert bring_back(connection, before) == 1
    assert tombstones_of(connection, erasure_id) == before
    assert is_kept_out(connection, reference()) == [True]


# -- at the same time as discovery --


def wait_until_somebody_waits(connection: sa.Connection) -> None:
    query = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not connection.execute(query).scalar_one():
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.01)


def in_thread(catalog: sa.Engine, work: Callable[[sa.Connection], object]) -> threading.Thread:
    def run() -> None:
        with catalog.begin() as connection:
            work(connection)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def erase_owner(connection: sa.Connection) -> None:
    erasure_id = set_owner_tombstone(connection, INSTAGRAM, "owner")
    open_erasure(connection, INSTAGRAM, erasure_id, "owner", scope="owner", requested_by="us", reason="")
    take_down(connection, erasure_id)


def test_what_was_admitted_before_the_tombstone_is_found_by_the_erasure(
    catalog: sa.Engine, connection: sa.Connection
) -> None:
    with catalog.begin() as discovery:
        assert is_kept_out(discovery, reference()) == [False]
        erasing = in_thread(catalog, erase_owner)
        wait_until_somebody_waits(connection)
        see(discovery, reference())
    erasing.join()
    assert images(connection) == 0


def test_what_is_discovered_while_a_tombstone_is_being_set_is_kept_out(
    catalog: sa.Engine, connection: sa.Connection
) -> None:
    with catalog.begin() as erasing:
        erase_owner(erasing)
        discovering = in_thread(catalog, lambda discovery: see(discovery, reference()))
        wait_until_somebody_waits(connection)
    discovering.join()
    assert images(connection) == 0
