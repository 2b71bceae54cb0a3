"""`profile` shows all that is known of a profile, on one screen."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.delivery_policy import switch_off
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import (
    NOW,
    RUN,
    outcome,
    paths,
    publish,
    reference,
    register,
    see,
    source_url,
    take_one,
)


@pytest.fixture(autouse=True)
def _profile(connection: sa.Connection) -> None:
    """A published avatar and a post that failed for good."""
    register(connection, RUN)
    see(connection, reference(image="owner"))
    publish(connection)
    key = ImageKey("post_thumbnail", "post-1", "4711")
    url = source_url("post", picture="post", lives=timedelta(hours=30))
    see(connection, ImageReference(key, "owner", "00", NOW - timedelta(days=3), (url,), NOW))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])


def test_its_pictures_their_states_urls_deadlines_and_failures_are_shown(invoke: Invoke) -> None:
    result = invoke("profile", "owner")
    assert result.exit_code == 0, result.output
    for words in (
        "Profile owner: 1 of 2 pictures published",
        "avatar",
        f"post {NOW - timedelta(days=3):%Y-%m-%d}",
        "512×512",
        "in 2 d",
        "image_corrupt",
        FailureKind.IMAGE_CORRUPT.advice,
        f"http://127.0.0.1:8000{paths('x')[1]}",
        "the API answers CDN URLs",
        "not configured",
        "never requested",
    ):
        assert words in result.output


@pytest.mark.parametrize("subject", ["post-1", "4711", "https://cdn.example/A-a.jpg", "/th/ig/owner/"])
def test_whatever_names_one_of_its_pictures_names_it(invoke: Invoke, subject: str) -> None:
    found = invoke("profile", subject)
    assert found.exit_code == 0
    assert "Profile owner" in found.output


def test_what_the_provider_said_is_shown_here_and_by_explain(invoke: Invoke, connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_provider_owners VALUES
                ('instagram', 'owner', now() - interval '5 hours', now() + interval '3 days', 'private', 2)""")
    )
    image_id = connection.execute(sa.text("SELECT id FROM cdn_image_assets LIMIT 1")).scalar_one()
    for command in (("profile", "owner"), ("explain", str(image_id))):
        told = invoke(*command).output
        assert "private, 2 times in a row" in told
        assert "(5 h ago)" in told
        assert "may be asked again in 2 d" in told


def test_refreshes_and_a_switched_off_cdn_are_shown(invoke: Invoke, connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_refreshes (collection, owner_id, shard, requested_at, answer, finished_at) VALUES
                ('instagram', 'owner', '00', now() - interval '2 hours', 'answered', now()),
                ('instagram', 'owner', '00', now(), NULL, NULL)""")
    )
    switch_off(connection, "test", expires_in=None)
    told = invoke("profile", "owner").output
    assert told.index("waits for a run") < told.index("answered, requested")
    assert "the API answers legacy URLs: the CDN is switched off" in told


def test_an_erased_profile_says_who_had_it_erased(invoke: Invoke, connection: sa.Connection) -> None:
    invoke("erase", "--owner", "owner", "--yes", "--by", "ada", "--reason", "ticket 12")
    assert connection.execute(sa.text("SELECT count(*) FROM cdn_image_assets")).scalar_one() == 0
    result = invoke("profile", "owner")
    assert result.exit_code == 0, result.output
    assert "the profile was erased" in result.output
    assert "for ada" in result.output
    assert "ticket 12" in result.output


def test_programs_get_every_story(invoke: Invoke) -> None:
    document = json.loads(invoke("profile", "owner", "--json").output)
    assert document["owner_id"] == "owner"
    assert [each["source_type"] for each in document["images"]] == ["profile_avatar", "post_thumbnail"]
    assert document["images"][1]["jobs"][0]["failure"] == FailureKind.IMAGE_CORRUPT


def test_it_fits_into_80_columns_with_every_id_and_every_word_whole(invoke: Invoke, connection: sa.Connection) -> None:
    output = invoke("profile", "owner", columns=80).output
    wide = [line for line in output.splitlines() if len(line) > 80]
    assert all(line.startswith("  http") for line in wide)
    pictures = output.split("Pictures")[1].split("What is not completed")[0]
    for image_id in connection.scalars(sa.text("SELECT id FROM cdn_image_assets")):
        assert str(image_id) in pictures
    assert FailureKind.IMAGE_CORRUPT in pictures


def test_a_picture_that_has_healed_says_after_what(invoke: Invoke, connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_image_jobs SET failure_kind = 'rate_limited' WHERE status = 'completed'"))
    pictures = invoke("profile", "owner", columns=80).output.split("Pictures")[1]
    assert "after rate_limited" in " ".join(pictures.split("post")[0].split())


def test_pixels_and_bytes_are_those_of_the_largest_rendition(invoke: Invoke, connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_image_renditions SET file_size = width * 1000"))
    pictures = invoke("profile", "owner", columns=80).output.split("Pictures")[1]
    heading, size, file_size = pictures.split("URL expires")[0], "512×512", "512.0 kB"
    assert "largest" in heading
    assert pictures.index(size) < pictures.index(file_size)
    assert "768.0 kB" not in pictures


def test_the_reason_of_what_is_not_completed_is_indented_as_a_whole(invoke: Invoke) -> None:
    reason = invoke("profile", "owner", columns=80).output.split("What is not completed")[1].split("Visible now")[0]
    lines = [line for line in reason.splitlines() if line.strip()]
    assert len(lines) > 2
    assert all(line.startswith("  ") for line in lines)


def test_nobody_is_told_as_such(invoke: Invoke) -> None:
    result = invoke("profile", "nobody")
    assert result.exit_code == 1
    assert "Nothing is known of nobody" in result.output
