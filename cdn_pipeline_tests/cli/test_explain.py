"""`explain` tells the whole story of an image, on any terminal."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline.sources.instagram import parse
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import (
    NOW,
    RUN,
    image,
    outcome,
    paths,
    publish,
    reference,
    register,
    see,
    source_url,
    take,
    take_one,
)

LONG_URL = f"https://cdn.example/v/t51.2885-15/4711_n.jpg?efg={'x' * 400}&oe=7fffffff"


def story_of(invoke: Invoke, connection: sa.Connection, *options: str, columns: int = 200) -> str:
    """What is told of the only image."""
    result = invoke("explain", str(image(connection)["id"]), *options, columns=columns)
    assert result.exit_code == 0, result.output
    return result.output


def see_post(connection: sa.Connection, url: str = LONG_URL) -> None:
    key = ImageKey("post_thumbnail", "post-1", "3290000000000000001")
    see(connection, ImageReference(key, "owner", "3f", NOW - timedelta(days=2), (parse(url),), NOW))


def test_a_published_image_tells_everything_about_itself(invoke: Invoke, connection: sa.Connection) -> None:
    see_post(connection)
    publish(connection, sha256="ab" * 32)
    told = story_of(invoke, connection)
    for words in (
        "post_thumbnail post-1",
        "3290000000000000001",
        "3f",
        "(2 d ago)",
        "the file 4711_n",
        "whole, in its original size",
        "ab" * 32,
        "jpeg, 1080×1080 px, 10 bytes",
        "the present picture",
        "ingest, priority 4, 1 attempt",
        f"run {RUN.run_id} on {RUN.worker_id}",
        "webp_thumbnails v3",
        *(f"http://127.0.0.1:8000{path}" for path in paths("x")),
        ": nothing to do.",
    ):
        assert words in told


def test_urls_are_shortened_unless_they_are_asked_for(invoke: Invoke, connection: sa.Connection) -> None:
    see_post(connection)
    for columns in (80, 120):
        told = story_of(invoke, connection, columns=columns)
        assert LONG_URL not in told
        assert "…" in told
        assert "&oe=7fffffff" in told
    assert LONG_URL in story_of(invoke, connection, "--verbose", columns=80)


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_but_what_is_to_be_copied_is_wider_than_the_terminal(
    invoke: Invoke, connection: sa.Connection, columns: int
) -> None:
    see_post(connection)
    settle(
        connection,
        RUN,
        [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, detail="[broken] " * 30)],
    )
    wide = [line for line in story_of(invoke, connection, columns=columns).splitlines() if len(line) > columns]
    assert all(line.startswith("  http") for line in wide)


def test_words_from_elsewhere_are_no_markup(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    detail = "[red]not red[/red] [/nothing]"
    settle(
        connection,
        RUN,
        [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, detail=detail)],
    )
    assert detail in story_of(invoke, connection)


def test_a_failed_image_says_how_to_try_it_again(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference(shard="3f"))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.FAILED, failure=FailureKind.OUT_OF_MEMORY)])
    told = story_of(invoke, connection)
    assert FailureKind.OUT_OF_MEMORY.advice in told
    assert f"cdn-pipeline retry {image(connection)['id']}" in told


def test_an_advice_is_told_once(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SIGNATURE_MISMATCH)])
    see(connection, reference(source_url("b", lives=timedelta(days=4))))
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SIGNATURE_MISMATCH)])
    told = story_of(invoke, connection)
    assert told.count("signature_mismatch") == 3
    assert told.count(FailureKind.SIGNATURE_MISMATCH.advice) == 1


def test_urls_of_earlier_jobs_are_remembered(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference(source_url(picture="old"), age=timedelta(hours=1)))
    publish(connection)
    see(connection, reference(source_url(picture="new")))
    told = story_of(invoke, connection)
    assert "earlier      https://cdn.example/old-a.jpg" in told
    assert "an earlier picture: the file old" in told
    assert "Due since" in told


def test_an_image_that_arrived_dead_or_was_removed_says_so(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=-timedelta(days=3))))
    connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now() - interval '5 days'"))
    told = story_of(invoke, connection)
    assert "arrived dead" in told
    assert "its source row was missing" in told
    assert "(5 d ago)" in told
    assert "none yet" in told


def test_many_jobs_are_told_in_full_only_if_asked_for(invoke: Invoke, connection: sa.Connection) -> None:
    for number in range(7):
        see(connection, reference(source_url(picture=str(number)), age=timedelta(hours=9 - number)))
        publish(connection, content=str(number), sha256=str(number))
    assert "and 2 earlier ones: --verbose" in story_of(invoke, connection)
    connection.execute(sa.text("UPDATE cdn_image_jobs SET archived_at = now()"))
    assert "and 7 earlier ones: --verbose" in story_of(invoke, connection)
    assert story_of(invoke, connection, "--verbose").count("priority 2, 1 attempt") == 7


def test_an_owner_is_a_table_of_images_and_all_their_stories_on_demand(
    invoke: Invoke, connection: sa.Connection
) -> None:
    register(connection, RUN)
    see(connection, reference(image="1"))
    publish(connection)
    see(connection, reference(image="2"))
    take(connection)
    see(connection, reference(image="3"))
    hold_queue(connection, INSTAGRAM)
    see(connection, reference(image="4"))
    table = invoke("explain", "owner").output
    assert "4 images, found by the id of an owner" in table
    for state in ("completed", "in hand", "on hold", "due"):
        assert state in table
    assert "What it is" not in table
    assert invoke("explain", "owner", "--all").output.count("What it is") == 4


def test_nobody_is_told_how_it_was_understood_and_what_to_try(invoke: Invoke) -> None:
    result = invoke("explain", "https://cdn.example/th/ig/nobody/nothing/256/0123456789abcdef.webp")
    assert result.exit_code == 1
    assert "No image is known by" in result.output
    assert "the path of a rendition" in result.output
    assert "the medium nothing of owner nobody" in result.output
    assert "Try the id" in result.output


def test_a_real_process_explains_a_public_url(
    environment: Mapping[str, str], connection: sa.Connection, tmp_path: Path
) -> None:
    see(connection, reference())
    publish(connection)
    url = f"https://elsewhere.example{paths('x')[0]}"
    explained = subprocess.run(
        [sys.executable, "-m", "cdn_pipeline.cli", "explain", url],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (explained.returncode, explained.stderr) == (0, "")
    assert str(image(connection)["id"]) in explained.stdout
    assert f"http://127.0.0.1:8000{paths('x')[0]}" in explained.stdout
