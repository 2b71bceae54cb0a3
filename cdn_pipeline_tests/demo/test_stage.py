"""The picture that the demo withholds: it fails in the demo's runs, and a retry heals it at an origin that gives it."""

from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import NO_FAULTS, Misbehaviour
from cdn_pipeline.demo.proof import catalog_state
from cdn_pipeline.demo.stage import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.retry import retry_images
from cdn_pipeline_tests.engine.runs import run
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    return small_world(profiles=3, posts=4)


def stage_of(world: World) -> Stage:
    return Stage(world.engine, world.origin.signer, world.origin.base_url)


def test_one_image_fails_whatever_is_fetched_again_and_heals_by_a_retry_once_its_picture_is_given(
    settings: Settings, catalog: sa.Engine, world: World
) -> None:
    stage = stage_of(world)
    url = stage.withhold_picture()
    run(settings)
    first = catalog_state(catalog, url)
    assert (first.failing, first.waiting, first.published) == (1, 0, first.images - 1)
    assert first.unpublished.total() == 0

    world.origin.requests.reset()
    stage.fetch_profiles_again()
    run(settings)
    assert set(world.origin.requests.by_outcome()) == {"html_page"}  # the others have fresh URLs and their pictures
    again = catalog_state(catalog, url)
    assert (again.failing, again.waiting, again.lost) == (1, 0, 0)

    world.origin.misbehaviour = Misbehaviour(NO_FAULTS)  # as in another process
    assert again.withheld is not None
    [[retried]] = retry_images(catalog, INSTAGRAM, [again.withheld.image_id], actor="test", dry_run=False)
    assert retried.image_id == again.withheld.image_id
    run(settings)
    healed = catalog_state(catalog, url)
    assert (healed.failing, healed.waiting, healed.published) == (0, 0, healed.images)
    assert healed.withheld is not None
    assert healed.withheld.owner_id in map(str, world.profile_ids)


def test_it_is_the_same_picture_however_its_urls_were_signed(world: World) -> None:
    stage = stage_of(world)
    before = stage.withhold_picture()
    app_database.resign_all(world.engine, world.origin.signer)
    after = stage.withhold_picture()
    assert before != after
    assert urlsplit(before).path == urlsplit(after).path


def test_a_picture_that_the_origins_own_faults_concern_is_not_chosen(world: World) -> None:
    path = urlsplit(stage_of(world).withhold_picture()).path
    assert Misbehaviour().drawn(path) is None


def test_once_its_url_has_died_it_waits_as_every_other(settings: Settings, catalog: sa.Engine, world: World) -> None:
    url = stage_of(world).withhold_picture()
    run(settings)
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 hour'"))
    state = catalog_state(catalog, url)
    assert (state.failing, state.waiting, state.lost) == (0, 1, 0)
