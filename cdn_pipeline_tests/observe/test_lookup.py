"""Whatever an operator has in hand, the image is found by it."""

import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.lookup import Found, find_images
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline.sources.instagram import parse
from cdn_pipeline_tests.queue.catalogs import (
    NOW,
    image,
    jobs,
    open_jobs,
    publish,
    reference,
    rendition,
    see,
    session,
    source_url,
)

OWNER = "0b3f9c1e-1111-4222-8333-444455556666"
POST = "7c5d8a90-aaaa-4bbb-8ccc-ddddeeeeffff"
SHA256 = "ab" * 32
SIGNED = "https://scontent.cdninstagram.com/v/t51.2885-15/4711_n.jpg?stp=dst-jpg_e35&_nc_ht=a&oh=1f&oe={expiry}"
URL = SIGNED.format(expiry="7fffffff")


def post(*urls: str, media_id: str = "3290000000000000001", owner: str = OWNER, post_id: str = POST) -> ImageReference:
    candidates = tuple(parse(url) for url in urls or (URL,))
    return ImageReference(ImageKey("post_thumbnail", post_id, media_id), owner, "02", NOW, candidates, NOW)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """A catalog with a published post, and an avatar of somebody else."""
    with catalog.begin() as connection:
        see(connection, post())
        publish(connection, sha256=SHA256)
        see(connection, reference(image="somebody"))
        yield connection


def find(connection: sa.Connection, subject: str) -> Found:
    return find_images(connection, INSTAGRAM, subject)


def is_the_post(connection: sa.Connection, found: Found) -> bool:
    ids = connection.scalars(sa.text("SELECT id FROM cdn_image_assets WHERE source_type = 'post_thumbnail'")).all()
    return list(found.image_ids) == list(ids)


@pytest.mark.parametrize(
    ("subject", "meaning"),
    [
        (OWNER, "owner"),
        (OWNER.upper(), "owner"),
        (f"  {OWNER}\n", "owner"),
        (POST, "source row"),
        ("3290000000000000001", "medium"),
        (SHA256, "SHA-256"),
        (SHA256.upper(), "SHA-256"),
        (f"originals/ab/ab/{SHA256}", "SHA-256"),
        (URL, "picture file:4711_n"),
        (URL.replace("&", "\\u0026").replace("/", "\\/"), "picture file:4711_n"),
        (SIGNED.format(expiry="11111111").replace("scontent", "scontent-ams2-1"), "picture file:4711_n"),
        (f"/th/ig/{OWNER}/3290000000000000001/256/0000000000000000.webp", "medium"),
        (f"https://cdn.example/th/ig/{OWNER}/3290000000000000001/256/0000000000000000.webp?x=1", "medium"),
        (f"https://cdn.example/base/th/ig/{OWNER}/", "owner"),
    ],
)
def test_an_image_is_found_by(connection: sa.Connection, subject: str, meaning: str) -> None:
    found = find(connection, subject)
    assert is_the_post(connection, found)
    assert meaning in found.readings[0].meaning


def test_an_image_is_found_by_its_own_id_and_by_that_of_its_job(connection: sa.Connection) -> None:
    row = connection.execute(sa.text("SELECT asset_id, id FROM cdn_image_jobs WHERE shard = '02'")).one()
    assert is_the_post(connection, find(connection, str(row.asset_id)))
    assert is_the_post(connection, find(connection, str(row.id)))


@pytest.mark.parametrize("before", ["https://cdn.example", "http://127.0.0.1:8000", "", "KEY"])
def test_an_image_is_found_by_its_public_url_on_any_host_its_path_and_its_key(
    connection: sa.Connection, before: str
) -> None:
    path = rendition().path
    subject = path.removeprefix("/") if before == "KEY" else before + path
    found = find(connection, subject)
    assert is_the_post(connection, found)
    assert found.readings[0].meaning == "the path of a rendition"


def test_an_image_is_found_by_a_url_that_only_its_jobs_remember(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        old = source_url(picture="old").url
        see(connection, reference(source_url(picture="old"), age=timedelta(hours=1)))
        publish(connection)
        see(connection, reference(source_url(picture="new")))
        publish(connection, content="y", sha256="B")
        assert jobs(connection)[0]["source_url"] == old
        assert find(connection, old).image_ids == (image(connection)["id"],)


def test_an_image_is_found_by_a_fallback(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        see(connection, post(URL, "https://elsewhere.example/lesser.jpg"))
        assert len(find(connection, "https://elsewhere.example/lesser.jpg").image_ids) == 1


def test_an_owner_has_all_its_images_the_newest_first(connection: sa.Connection) -> None:
    older = ImageReference(
        ImageKey("post_thumbnail", str(uuid.uuid4()), "1"), OWNER, "02", NOW - timedelta(days=9), (parse(URL),), NOW
    )
    see(connection, older)
    found = find(connection, OWNER)
    taken = [
        connection.scalar(sa.text("SELECT taken_at FROM cdn_image_assets WHERE id = :id"), {"id": key})
        for key in found.image_ids
    ]
    assert taken == [NOW, NOW - timedelta(days=9)]


def test_images_that_share_a_picture_are_all_found_by_its_url(connection: sa.Connection) -> None:
    see(connection, post(media_id="2", post_id=str(uuid.uuid4())))
    assert len(find(connection, URL).image_ids) == 2


def test_32_digits_are_the_id_of_a_medium_and_no_uuid(catalog: sa.Engine) -> None:
    digits = "12345678123456781234567812345678"
    with catalog.begin() as connection:
        see(connection, post(media_id=digits))
        assert find(connection, digits).image_ids == (image(connection)["id"],)


def test_what_is_not_found_says_how_it_was_understood(connection: sa.Connection) -> None:
    assert [reading.meaning for reading in find(connection, "nobody").readings] == [
        "the id of an owner (a profile)",
        "the id of a source row (a post)",
        "the id of a medium",
    ]
    (impossible,) = find(connection, "https://user:password@host.example/a.jpg").readings
    assert "credentials" in impossible.meaning
    assert len(open_jobs(connection)) == 1  # looking changes nothing


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text()
    | st.text().map("https://{}".format)
    | st.text().map("/th/ig/{}".format)
    | st.text(alphabet="\udcff\x00[]%\\\"'")
)
def test_no_words_whatever_are_an_error(connection: sa.Connection, subject: str) -> None:
    found = find(connection, subject)
    assert found.image_ids or found.readings
