"""Asking a source whether its picture is still the one that we have."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.demo.app_database import replace_avatar
from cdn_pipeline.demo.faults import NO_FAULTS, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.engine.runs import QUICK, folder, image, images, jobs, objects_in, renditions, run
from cdn_pipeline_tests.engine.test_images import avatar_urls, dead, force, set_avatar_urls
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture
def origin(picture_folder: Path) -> Iterator[Origin]:
    """One that sends ETags."""
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), etag=True) as origin:
        yield origin


@pytest.fixture
def avatar(small_world: SmallWorld) -> World:
    """One profile without posts: one image, whose two URLs have ranks of their own."""
    return small_world(profiles=1, posts=0)


def answers(world: World) -> dict[str, int]:
    """How the origin has answered since it was asked last."""
    found = world.origin.requests.by_outcome()
    world.origin.requests.reset()
    return found


@pytest.mark.parametrize("validator", ["source_etag", "source_last_modified"])
def test_a_picture_that_is_still_the_same_is_not_sent_again(
    avatar: World, settings: Settings, catalog: sa.Engine, validator: str
) -> None:
    run(settings)
    other = {"source_etag": "source_last_modified", "source_last_modified": "source_etag"}[validator]
    with catalog.begin() as connection:
        connection.execute(sa.text(f"UPDATE cdn_image_assets SET {other} = NULL"))
    before, made = image(catalog, avatar.profile_ids[0]), renditions(catalog)
    assert before[validator] is not None
    assert answers(avatar) == {"ok": 1}
    force(catalog, Stage.DOWNLOAD)
    tally = run(settings)
    assert answers(avatar) == {"not_modified": 1}
    assert (tally.unchanged, tally.downloaded, tally.bytes_in, tally.success_rate) == (1, 0, 0, 1.0)
    assert renditions(catalog) == made
    after = image(catalog, avatar.profile_ids[0])
    kept = ("processing_status", "source_etag", "source_last_modified", "original_sha256", "original_rank")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert [(job["status"], job["bytes_in"]) for job in jobs(catalog)][1:] == [("completed", None)]


def test_what_is_forced_is_sent_again(avatar: World, settings: Settings, catalog: sa.Engine) -> None:
    run(settings)
    force(catalog, Stage.DOWNLOAD, forced=True)
    assert run(settings).published == 1
    assert answers(avatar) == {"ok": 2}


def test_where_renditions_are_to_be_made_the_picture_is_sent_again(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    force(catalog, Stage.DOWNLOAD)
    assert (
        run(
            settings, collection=replace(QUICK, recipe=replace(QUICK.recipe, version=QUICK.recipe.version + 1))
        ).published
        == 1
    )
    assert answers(avatar) == {"ok": 2}


def test_another_picture_is_asked_for_without_the_validators_of_the_one_before(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    replace_avatar(avatar.engine, avatar.origin.signer, avatar.profile_ids[0])
    assert run(settings).published == 1
    assert answers(avatar) == {"ok": 2}


def test_the_better_url_is_not_asked_with_the_validators_of_the_lesser_one(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    good = avatar_urls(avatar)["profile_pic_url_hd"]
    set_avatar_urls(avatar, profile_pic_url_hd=dead(good))
    run(settings)
    answers(avatar)
    set_avatar_urls(avatar, profile_pic_url_hd=good)
    assert run(settings).published == 1
    assert answers(avatar) == {"ok": 1}
    [row] = images(catalog)
    assert row["original_rank"] == row["rank"]


def test_an_original_that_the_store_has_lost_is_sent_again(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    [(key, data)] = objects_in(settings.originals_url).items()
    (folder(settings.originals_url) / key).unlink()
    force(catalog, Stage.ENCODE)
    tally = run(settings)
    assert (tally.unchanged, tally.attempts_failed) == (1, {FailureKind.ORIGINAL_MISSING: 1})
    assert answers(avatar) == {"ok": 2}
    assert objects_in(settings.originals_url) == {key: data}


def test_a_lesser_url_that_stands_in_is_asked_without_validators(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    force(catalog, Stage.DOWNLOAD)
    answers(avatar)
    set_avatar_urls(avatar, profile_pic_url_hd=dead(avatar_urls(avatar)["profile_pic_url_hd"]))
    assert run(settings).unchanged == 1  # the lesser picture is no news
    assert answers(avatar) == {"mismatch": 1, "ok": 1}
