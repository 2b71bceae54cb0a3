"""Placeholders on their way from a worker, or from a label, into the catalog."""

from dataclasses import replace

import pytest
import sqlalchemy as sa

from cdn_pipeline.media.recipes import AVIF_THUMBNAILS
from cdn_pipeline.media.transcode import transcode
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rollout import start_rollout
from cdn_pipeline_tests.engine.runs import EVERYTHING, QUICK, images, objects_in, renditions, run
from cdn_pipeline_tests.world import SmallWorld

WITH_AVIF = replace(QUICK, rollouts=(replace(AVIF_THUMBNAILS, effort=10),))
Placeholders = dict[str, str | None]


def placeholders(catalog: sa.Engine) -> Placeholders:
    """By original."""
    return {row["original_sha256"]: row["placeholder"] for row in images(catalog)}


def of_stored_originals(settings: Settings) -> Placeholders:
    """What the catalog should have."""
    originals = objects_in(settings.originals_url)
    return {key.rpartition("/")[2]: transcode(data, QUICK.recipe).placeholder for key, data in originals.items()}


@pytest.fixture
def published(small_world: SmallWorld, settings: Settings, catalog: sa.Engine) -> Placeholders:
    """What a run gave its images."""
    small_world(profiles=2, posts=1)
    run(settings)
    return placeholders(catalog)


def test_every_published_image_has_the_placeholder_of_its_original(published: Placeholders, settings: Settings) -> None:
    assert len(published) == 4
    assert published == of_stored_originals(settings)


def test_a_run_that_only_publishes_finds_it_at_the_renditions(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    small_world(profiles=2, posts=1)
    run(settings, stages=EVERYTHING - {Stage.PUBLISH})
    assert set(placeholders(catalog).values()) == {None}
    run(settings, stages=frozenset({Stage.PUBLISH}))
    assert placeholders(catalog) == of_stored_originals(settings)


@pytest.mark.parametrize("known", [True, False])
def test_a_rollout_keeps_it_and_fills_it_in_where_there_was_none(
    published: Placeholders, settings: Settings, catalog: sa.Engine, known: bool
) -> None:
    if not known:
        with catalog.begin() as connection:
            connection.execute(sa.text("UPDATE cdn_image_assets SET placeholder = NULL"))
    list(start_rollout(catalog, WITH_AVIF, AVIF_THUMBNAILS.name))
    run(settings, collection=WITH_AVIF)
    assert {row["format"] for row in renditions(catalog) if row["state"] == "current"} == {"webp", "avif"}
    assert placeholders(catalog) == published
