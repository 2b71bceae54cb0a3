"""A recipe is rolled out with the runs that there are: from stored originals, beside what is published."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
import sqlalchemy as sa
from PIL import Image

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.app_database import replace_avatar
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.rollout import pause_rollout, resume_rollout, rollout_status, start_rollout
from cdn_pipeline_tests.engine.runs import folder, image, jobs, objects_in, view
from cdn_pipeline_tests.orchestration.workplace import ALL_SHARDS, ORIGINALS, RENDITIONS, Workplace
from cdn_pipeline_tests.world import SmallWorld, World

AVIF = AVIF_THUMBNAILS.name
IMAGES = 4


@pytest.fixture
def world(small_world: SmallWorld, memory_workplace: Workplace) -> World:
    """Four avatars, published; the origin's requests are counted from now on."""
    world = small_world(profiles=IMAGES, posts=0)
    assert memory_workplace.run(*ALL_SHARDS).success
    world.origin.requests.reset()
    return world


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with catalog.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


def roll_out(catalog: sa.Engine) -> int:
    *_, last = start_rollout(catalog, INSTAGRAM, AVIF)
    return last.total


def numbers(connection: sa.Connection) -> tuple[int, int, int]:
    """How many images of the rollout are done, open and held."""
    [status] = rollout_status(connection, INSTAGRAM)
    return status.done, status.open, status.held


def formats(settings: Settings) -> Counter[str]:
    return Counter(key.rpartition(".")[2] for key in objects_in(settings.objects_url))


def avif_of(row: Mapping[str, Any]) -> list[str | None]:
    return [row["cdn_path_256_avif"], row["cdn_path_512_avif"]]


def webp_of(row: Mapping[str, Any]) -> list[str | None]:
    return [row["cdn_path_256"], row["cdn_path_512"]]


def test_avif_is_made_from_originals_when_no_url_is_good_any_more(
    memory_workplace: Workplace, world: World, catalog: sa.Engine, connection: sa.Connection, settings: Settings
) -> None:
    before = view(catalog)
    assert [avif_of(row) for row in before.values()] == [[None, None]] * IMAGES
    world.origin.advance_clock(timedelta(days=10))

    assert roll_out(catalog) == IMAGES
    run = memory_workplace.run(*ALL_SHARDS)

    assert run.success
    assert world.origin.requests.total == 0
    assert memory_workplace.sum_of("downloaded", run.run_id, ORIGINALS) == 0
    assert memory_workplace.sum_of("renditions", run.run_id, RENDITIONS) == 2 * IMAGES
    assert numbers(connection) == (IMAGES, 0, 0)
    assert formats(settings) == {"webp": 2 * IMAGES, "avif": 2 * IMAGES}
    for key, row in view(catalog).items():
        assert webp_of(row) == webp_of(before[key])
        for size in (256, 512):
            path = row[f"cdn_path_{size}_avif"]
            assert path.startswith(f"/th/ig/{row['owner_id']}/avatar/{size}/")
            data = (folder(settings.objects_url) / path[1:]).read_bytes()
            assert row[f"file_size_{size}_avif"] == len(data)
            picture = Image.open(BytesIO(data))
            assert (picture.format, picture.size) == ("AVIF", (row[f"width_{size}"], row[f"height_{size}"]))


def test_what_is_paused_waits_and_what_is_resumed_goes_on(
    memory_workplace: Workplace, world: World, catalog: sa.Engine, connection: sa.Connection, settings: Settings
) -> None:
    roll_out(catalog)
    pause_rollout(connection, INSTAGRAM, AVIF)
    assert memory_workplace.run(*ALL_SHARDS).success
    assert numbers(connection) == (0, 0, IMAGES)
    assert formats(settings) == {"webp": 2 * IMAGES}

    resume_rollout(connection, INSTAGRAM, AVIF)
    assert memory_workplace.materialize(["image_renditions", "published_images"], *ALL_SHARDS).success
    assert numbers(connection) == (IMAGES, 0, 0)


def test_a_picture_that_is_replaced_in_the_middle_is_downloaded_and_then_rolled_out(
    memory_workplace: Workplace, world: World, catalog: sa.Engine, connection: sa.Connection
) -> None:
    roll_out(catalog)
    replaced = str(world.profile_ids[0])
    replace_avatar(world.engine, world.origin.signer, world.profile_ids[0])

    assert memory_workplace.run(*ALL_SHARDS).success

    rows = {key[1]: row for key, row in view(catalog).items()}
    assert avif_of(rows[replaced]) == [None, None]
    assert all(None not in avif_of(row) for owner, row in rows.items() if owner != replaced)
    assert world.origin.requests.total == 1
    assert numbers(connection) == (IMAGES - 1, 0, 0)

    assert memory_workplace.run(*ALL_SHARDS).success  # it was published since: the rollout is for it, too

    assert numbers(connection) == (IMAGES, 0, 0)
    assert world.origin.requests.total == 1


def test_a_picture_that_is_replaced_afterwards_is_never_shown_beside_the_one_before(
    memory_workplace: Workplace, world: World, catalog: sa.Engine
) -> None:
    roll_out(catalog)
    assert memory_workplace.run(*ALL_SHARDS).success
    replaced = str(world.profile_ids[0])
    before = next(row for key, row in view(catalog).items() if key[1] == replaced)
    replace_avatar(world.engine, world.origin.signer, world.profile_ids[0])

    assert memory_workplace.run(*ALL_SHARDS).success

    after = next(row for key, row in view(catalog).items() if key[1] == replaced)
    assert webp_of(after) != webp_of(before)
    assert avif_of(after) == [None, None]


def test_an_original_that_was_lost_costs_the_rollout_one_download(
    memory_workplace: Workplace, world: World, catalog: sa.Engine, connection: sa.Connection, settings: Settings
) -> None:
    lost = image(catalog, world.profile_ids[0])["original_sha256"]
    for key in objects_in(settings.originals_url):
        if key.endswith(lost):
            (folder(settings.originals_url) / key).unlink()
    roll_out(catalog)

    for _ in range(2):
        assert memory_workplace.run(*ALL_SHARDS).success

    assert numbers(connection) == (IMAGES, 0, 0)
    assert {job["rollout"] for job in jobs(catalog) if job["stage"] == "download"} == {None}
    assert any(key.endswith(lost) for key in objects_in(settings.originals_url))
