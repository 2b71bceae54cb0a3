"""What becomes of images: every run here is a whole one, on a small world with its origin, stores and workers."""

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
from aiohttp import web
from PIL import Image

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.app_database import profiles_table, replace_avatar, resign_all
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.demo.origin import Origin
from cdn_pipeline.demo.pictures import Picture, PictureCache
from cdn_pipeline.demo.serving import in_thread
from cdn_pipeline.engine import images as images_module
from cdn_pipeline.engine import stream as stream_module
from cdn_pipeline.engine.hosts import Hosts
from cdn_pipeline.engine.mirror import Mirror
from cdn_pipeline.engine.outages import Outage, StoreWatch
from cdn_pipeline.engine.pool import PoolBroken, WorkerPool
from cdn_pipeline.engine.transcoding import Transcoder
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Transcoded
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.keys import rendition_key
from cdn_pipeline_tests.engine.runs import (
    EVERYTHING,
    QUICK,
    assert_nothing_in_hand,
    folder,
    image,
    images,
    job_states,
    jobs,
    make_due,
    objects_in,
    renditions,
    retries,
    rows,
    run,
    view,
)
from cdn_pipeline_tests.fetch.origins import by_path, response
from cdn_pipeline_tests.fetch.origins import origin as raw_origin
from cdn_pipeline_tests.store.test_objects import serving, store_at
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture
def avatar(small_world: SmallWorld) -> World:
    """One profile without posts: one image, whose two URLs have ranks of their own."""
    return small_world(profiles=1, posts=0)


def avatar_path(world: World) -> str:
    return urlsplit(avatar_urls(world)["profile_pic_url_hd"]).path


def avatar_urls(world: World) -> dict[str, str]:
    with world.engine.connect() as connection:
        row = connection.execute(sa.select(profiles_table)).mappings().one()
    return {name: row[name] for name in ("profile_pic_url", "profile_pic_url_hd")}


def set_avatar_urls(world: World, **urls: str | None) -> None:
    with world.engine.begin() as connection:
        connection.execute(profiles_table.update().values({**urls, "updated_at": sa.func.now()}))


def dead(url: str) -> str:
    """The same URL with a signature that the origin refuses."""
    head, _, tail = url.partition("oh=00_Af")
    return f"{head}oh=00_Af{'A' if tail[0] != 'A' else 'B'}{tail[1:]}"


# -- faults --


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.SERVER_ERROR, FailureKind.SOURCE_ERROR),
        (Fault.TRUNCATED, FailureKind.TRUNCATED_DOWNLOAD),
        (Fault.RATE_LIMITED, FailureKind.RATE_LIMITED),
    ],
)
def test_a_passing_fault_heals_inside_the_run(
    avatar: World, settings: Settings, catalog: sa.Engine, fault: Fault, kind: FailureKind
) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), fault, attempts=1)
    tally = run(settings, collection=replace(QUICK, retry=retries(0.1, 2.5)))
    assert (tally.published, tally.images, tally.success_rate) == (1, 1, 1.0)
    assert tally.attempts_failed == {kind: 1}
    [job] = jobs(catalog)
    assert (job["status"], job["retry_count"], job["failure_kind"]) == ("completed", 1, None)
    [row] = images(catalog)
    assert row["original_rank"] == row["rank"]  # the better URL was tried again


def test_a_slow_answer_is_no_failure(avatar: World, settings: Settings, catalog: sa.Engine) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), Fault.SLOW)
    assert run(settings).published == 1
    [row] = images(catalog)
    assert row["download_time_ms"] >= 500


def test_a_fault_that_lasts_leaves_the_job_open_for_a_later_run(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), Fault.SERVER_ERROR, attempts=5)
    tally = run(settings)
    assert (tally.failed, tally.success_rate) == (1, 0.0)
    assert tally.attempts_failed == {FailureKind.SOURCE_ERROR: 4}
    [job] = jobs(catalog)
    assert (job["status"], job["retry_count"], job["failure_kind"]) == ("queued", 4, "source_error")
    assert (job["next_attempt_at"] - job["updated_at"]) > timedelta(minutes=14)
    make_due(catalog)
    assert run(settings).published == 1
    assert view(catalog)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(Fault.HTML_PAGE, FailureKind.NOT_AN_IMAGE), (Fault.STALE_URL, FailureKind.SOURCE_URL_404)],
)
def test_what_wants_a_fresh_url_waits_for_one(
    avatar: World, settings: Settings, catalog: sa.Engine, fault: Fault, kind: FailureKind
) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), fault, attempts=2)  # both URLs of the picture
    tally = run(settings)
    assert tally.failures == {kind: 1}
    assert tally.attempts_failed == {kind: 1}  # not asked for again in vain
    [row] = images(catalog)
    assert (row["processing_status"], row["failure_kind"]) == ("pending", kind)
    assert run(settings).images == 0
    resign_all(avatar.engine, avatar.origin.signer)
    assert run(settings).published == 1
    [row] = images(catalog)
    assert (row["processing_status"], row["failure_kind"], row["processing_error"]) == ("completed", None, None)


def test_a_picture_that_is_gone_under_a_fresh_url_too_is_gone(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    avatar.origin.delete_picture(avatar_path(avatar))
    assert run(settings).failures == {FailureKind.SOURCE_URL_404: 1}
    resign_all(avatar.engine, avatar.origin.signer)
    tally = run(settings)
    assert tally.failures == {FailureKind.SOURCE_GONE: 1}
    assert (tally.not_in_rate, tally.success_rate) == (1, None)
    assert [row["processing_status"] for row in images(catalog)] == ["failed"]


def test_a_refused_signature_or_an_expired_url_is_not_in_the_rate(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    avatar.origin.advance_clock(timedelta(days=6))
    tally = run(settings)
    assert tally.failures == {FailureKind.SOURCE_URL_EXPIRED: 1}
    assert (tally.not_in_rate, tally.success_rate) == (1, None)
    resign_all(avatar.engine, avatar.origin.signer, now=avatar.origin.now())
    set_avatar_urls(avatar, **{name: dead(url) for name, url in avatar_urls(avatar).items()})
    tally = run(settings)
    assert tally.failures == {FailureKind.SIGNATURE_MISMATCH: 1}
    assert tally.not_in_rate == 1
    assert [row["processing_status"] for row in images(catalog)] == ["pending"]


# -- candidates --


def test_a_lesser_candidate_is_taken_when_the_better_one_fails_for_good(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    set_avatar_urls(avatar, profile_pic_url_hd=dead(avatar_urls(avatar)["profile_pic_url_hd"]))
    assert run(settings).published == 1
    [row] = images(catalog)
    assert row["original_rank"] < row["rank"]
    assert (row["original_width"], row["original_height"]) == (150, 150)


def test_the_better_candidate_takes_the_place_of_the_lesser_once_it_answers(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    good = avatar_urls(avatar)["profile_pic_url_hd"]
    set_avatar_urls(avatar, profile_pic_url_hd=dead(good))
    run(settings)
    lesser = view(catalog)
    set_avatar_urls(avatar, profile_pic_url_hd=good)
    resign_all(avatar.engine, avatar.origin.signer)
    assert run(settings).published == 1
    [row] = images(catalog)
    assert row["original_rank"] == row["rank"]
    assert view(catalog).keys() == lesser.keys()
    assert view(catalog) != lesser


def test_passing_trouble_is_no_reason_for_a_lesser_picture_until_it_has_lasted_for_all_retries(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), Fault.SERVER_ERROR, attempts=4)
    tally = run(settings)
    assert tally.attempts_failed == {FailureKind.SOURCE_ERROR: 3}
    assert tally.published == 1
    [row] = images(catalog)
    assert row["original_rank"] < row["rank"]
    assert (row["original_width"], row["original_height"]) == (150, 150)


def test_never_a_worse_picture_than_the_one_we_have(avatar: World, settings: Settings, catalog: sa.Engine) -> None:
    run(settings)
    before, originals = view(catalog), objects_in(settings.originals_url)
    resign_all(avatar.engine, avatar.origin.signer)
    set_avatar_urls(avatar, profile_pic_url_hd=dead(avatar_urls(avatar)["profile_pic_url_hd"]))
    run(settings)
    force(catalog, Stage.DOWNLOAD)
    newer = replace(QUICK, recipe=replace(QUICK.recipe, version=QUICK.recipe.version + 1))
    tally = run(settings, collection=newer)  # the URL shows a lesser crop: the stored original is encoded
    assert tally.published == 1
    assert {key: row["content_hash_512"] for key, row in view(catalog).items()} == {
        key: row["content_hash_512"] for key, row in before.items()
    }
    assert objects_in(settings.originals_url) == originals
    assert {row["recipe_version"] for row in renditions(catalog) if row["state"] == "current"} == {newer.recipe.version}


def test_where_a_better_original_is_stored_a_run_of_downloads_alone_makes_nothing_of_a_lesser_one(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    resign_all(avatar.engine, avatar.origin.signer)
    set_avatar_urls(avatar, profile_pic_url_hd=dead(avatar_urls(avatar)["profile_pic_url_hd"]))
    run(settings, stages=frozenset())  # discovery only
    before, originals = renditions(catalog), objects_in(settings.originals_url)
    force(catalog, Stage.DOWNLOAD, forced=True)
    tally = run(settings, stages=frozenset({Stage.DOWNLOAD}))
    assert (tally.verdicts, tally.renditions) == ({Verdict.ADVANCED: 1}, 0)
    assert renditions(catalog) == before
    assert objects_in(settings.originals_url) == originals


def test_a_lost_original_of_which_only_a_lesser_picture_can_be_had_ends_as_gone_and_stays_visible(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    before = view(catalog)
    for key in objects_in(settings.originals_url):
        (folder(settings.originals_url) / key).unlink()
    resign_all(avatar.engine, avatar.origin.signer)
    set_avatar_urls(avatar, profile_pic_url_hd=dead(avatar_urls(avatar)["profile_pic_url_hd"]))
    force(catalog, Stage.ENCODE)
    tally = run(settings)
    assert (+tally.verdicts, +tally.failures) == ({Verdict.FAILED: 1}, {FailureKind.SOURCE_GONE: 1})
    assert view(catalog) == {key: row | {"processing_status": "failed"} for key, row in before.items()}


def force(catalog: sa.Engine, stage: Stage, *, forced: bool = False) -> None:
    """Opens a job for every image, as an operator may."""
    with catalog.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url, stage, force)
                SELECT id, collection, shard, 'update', source_url, :stage, :forced FROM cdn_image_assets
            """),
            {"stage": stage, "forced": forced},
        )
        connection.execute(sa.text("UPDATE cdn_image_assets SET processing_status = 'pending'"))


def test_the_same_bytes_again_are_unchanged_and_touch_no_rendition(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    before = renditions(catalog)
    forget_validators(catalog)
    force(catalog, Stage.DOWNLOAD)
    tally = run(settings)
    assert (tally.unchanged, tally.downloaded, tally.success_rate) == (1, 1, 1.0)
    assert renditions(catalog) == before


def forget_validators(catalog: sa.Engine) -> None:
    """As with a host that sends none."""
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET source_etag = NULL, source_last_modified = NULL"))


def test_force_encodes_the_same_bytes_again_to_the_same_objects(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    before, stored = view(catalog), objects_in(settings.objects_url)
    force(catalog, Stage.DOWNLOAD, forced=True)
    assert run(settings).published == 1
    assert view(catalog) == before
    assert objects_in(settings.objects_url) == stored


# -- what is wrong with the bytes --


def corrupt(world: World, picture_folder: Path) -> None:
    """The origin's pictures of this world become JPEGs that end in the middle."""
    picture = Picture.at(avatar_path(world))
    assert picture is not None
    for stp in ("dst-jpg_s150x150", "dst-jpg_e35"):
        body = PictureCache(picture_folder).make(picture, stp)
        place = picture_folder / _place(picture, stp)
        place.write_bytes(body[: len(body) // 3])


def _place(picture: Picture, stp: str) -> str:
    name = hashlib.sha256(f"{picture.path}?{stp}".encode()).hexdigest()
    return f"{name[:2]}/{name}"


def test_a_corrupt_picture_fails_and_its_original_is_kept(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, picture_folder: Path
) -> None:
    world = small_world(profiles=1, posts=0, seed=77)
    corrupt(world, picture_folder)
    tally = run(settings)
    assert tally.failures == {FailureKind.IMAGE_CORRUPT: 1}
    [row] = images(catalog)
    assert (row["processing_status"], row["failure_kind"]) == ("failed", "image_corrupt")
    [(key, data)] = objects_in(settings.originals_url).items()
    assert key.endswith(row["original_sha256"])
    assert hashlib.sha256(data).hexdigest() == row["original_sha256"]
    assert objects_in(settings.objects_url) == {}
    resign_all(world.engine, world.origin.signer)
    assert run(settings).images == 0  # the same picture would fail again


def test_a_failed_update_keeps_serving_the_last_good_rendition(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, picture_folder: Path
) -> None:
    world = small_world(profiles=1, posts=0, seed=78)
    run(settings)
    before = view(catalog)
    replace_avatar(world.engine, world.origin.signer, world.profile_ids[0])
    corrupt(world, picture_folder)
    assert run(settings).failures == {FailureKind.IMAGE_CORRUPT: 1}
    failed = view(catalog)
    assert [row["cdn_url_512"] for row in failed.values()] == [row["cdn_url_512"] for row in before.values()]
    assert before.keys() == failed.keys()


def test_odd_headers_of_a_host_do_no_harm(settings: Settings, catalog: sa.Engine, small_world: SmallWorld) -> None:
    world = small_world(profiles=1, posts=0)
    picture = BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(picture, "JPEG")
    answer = response(200, picture.getvalue(), headers={"ETag": "tag", "Content-Type": "image/kind"})
    answer = answer.replace(b"tag", b'"\xff\xfe"').replace(b"kind", b"\xe9\xff")
    with in_thread(raw_origin(by_path({"/a.jpg": answer}))) as host:
        set_avatar_urls(world, profile_pic_url=None, profile_pic_url_hd=f"{host.base}/a.jpg")
        assert run(settings).published == 1
    [row] = images(catalog)
    assert (row["source_etag"], row["source_content_type"], row["original_format"]) == (None, None, "jpeg")


# -- stores --


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits a second for a store, instead of two minutes."""
    monkeypatch.setattr(stream_module, "StoreWatch", partial(StoreWatch, patience_seconds=1.0))


@pytest.mark.usefixtures("impatient")
def test_a_store_that_does_not_keep_what_it_took_makes_nothing_visible(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    async def forget(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=404 if request.method == "HEAD" else 200, headers={"ETag": '"0"'})

    with in_thread(serving(forget)) as endpoint_url:

        def prepare(mirror: Mirror) -> None:
            mirror.objects = store_at(endpoint_url, timedelta(seconds=5))

        with pytest.raises(Outage, match="store_unavailable"):
            run(settings, prepare=prepare)
    assert view(catalog) == {}
    assert renditions(catalog) == []
    [job] = jobs(catalog)
    assert (job["status"], job["stage"], job["retry_count"]) == ("queued", "encode", 0)  # the original is stored
    avatar.origin.advance_clock(timedelta(days=6))
    assert run(settings).published == 1


@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_out_of_reach_ends_the_run_with_nothing_visible_and_everything_due(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    def prepare(mirror: Mirror) -> None:
        for url in (settings.objects_url, settings.originals_url):
            shutil.rmtree(folder(url))
            folder(url).write_text("no folder any more")

    with pytest.raises(Outage, match="store_unavailable"):
        run(settings, prepare=prepare)
    assert view(catalog) == {}
    assert_nothing_in_hand(catalog)
    for url in (settings.objects_url, settings.originals_url):
        folder(url).unlink()
    assert run(settings).published == 1


def test_a_damaged_object_under_a_rendition_key_is_put_again(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    good = objects_in(settings.objects_url)
    for key in good:
        (folder(settings.objects_url) / key).write_bytes(b"half")
    force(catalog, Stage.DOWNLOAD, forced=True)
    assert run(settings).published == 1
    assert objects_in(settings.objects_url) == good


def test_a_lost_original_is_downloaded_again_and_comes_back(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings)
    kept = objects_in(settings.originals_url)
    for key in kept:
        (folder(settings.originals_url) / key).unlink()
    force(catalog, Stage.ENCODE, forced=True)
    tally = run(settings, stages=frozenset({Stage.ENCODE, Stage.PUBLISH}))
    assert tally.failures == {FailureKind.ORIGINAL_MISSING: 1}
    assert len(view(catalog)) == 1  # what is published stays
    tally = run(settings)
    assert (tally.published, tally.downloaded) == (1, 1)
    assert objects_in(settings.originals_url) == kept


def test_what_is_missing_at_publication_is_encoded_again(avatar: World, settings: Settings, catalog: sa.Engine) -> None:
    run(settings, stages=frozenset({Stage.DOWNLOAD, Stage.ENCODE}))
    encoded = objects_in(settings.objects_url)
    shutil.rmtree(folder(settings.objects_url) / "th")
    tally = run(settings, stages=frozenset({Stage.PUBLISH}))
    assert tally.failures == {FailureKind.UPLOAD_FAILED: 1}
    assert view(catalog) == {}
    tally = run(settings)
    assert (tally.published, tally.downloaded) == (1, 0)
    assert objects_in(settings.objects_url) == encoded


def test_another_picture_that_came_while_the_job_was_left_at_a_later_stage_is_downloaded(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    run(settings, stages=frozenset({Stage.DOWNLOAD}))
    picture = replace_avatar(avatar.engine, avatar.origin.signer, avatar.profile_ids[0])
    run(settings, stages=frozenset())  # discovery only
    with catalog.begin() as connection:  # as when the job was in hand while discovery ran, and its run died
        connection.execute(sa.text("UPDATE cdn_image_jobs SET stage = 'encode'"))
    tally = run(settings, stages=frozenset({Stage.ENCODE, Stage.PUBLISH}))
    assert tally.verdicts == {Verdict.RELEASED: 1}
    assert view(catalog) == {}
    assert run(settings).published == 1
    assert avatar.origin.requests.by_path()[picture.path] == {"ok": 1}
    [row] = images(catalog)
    assert row["original_identity"] == row["identity"]


# -- the pool --


def test_a_pool_that_loses_every_task_ends_in_a_retry_instead_of_a_loop(
    avatar: World, settings: Settings, catalog: sa.Engine
) -> None:
    tally = run(settings, prepare=lambda mirror: mirror.pool.close())
    assert tally.failures == {FailureKind.WORKER_DIED: 1}
    assert (tally.images, tally.success_rate) == (1, 0.0)
    [job] = jobs(catalog)
    assert (job["status"], job["failure_kind"], job["stage"]) == ("queued", "worker_died", "encode")
    make_due(catalog)
    assert run(settings).published == 1


def test_a_task_that_is_lost_now_and_then_is_not_the_images_fault(
    avatar: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, losses = WorkerPool.run, iter(range(images_module.MAX_RELEASES))

    async def unsteady(pool: WorkerPool, function: Callable[..., object], *args: object, **limits: Any) -> object:
        if next(losses, None) is not None:
            raise PoolBroken("lost")
        return await sound(pool, function, *args, **limits)

    monkeypatch.setattr(WorkerPool, "run", unsteady)
    tally = run(settings)
    assert (tally.published, tally.images, tally.attempts_failed) == (1, 1, {})
    assert [job["retry_count"] for job in jobs(catalog)] == [0]


def test_a_catalog_that_is_away_when_a_host_is_asked_is_not_the_images_fault(
    avatar: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit, cuts = Hosts.visit, iter(range(3))

    @asynccontextmanager
    async def cut_off(hosts: Hosts, name: str) -> AsyncIterator[None]:
        if next(cuts, None) is not None:
            raise sa.exc.OperationalError("SELECT", {}, psycopg.OperationalError("the connection is lost"))
        async with visit(hosts, name):
            yield

    monkeypatch.setattr(Hosts, "visit", cut_off)
    tally = run(settings)
    assert (tally.published, tally.images, tally.attempts_failed) == (1, 1, {})
    assert [job["retry_count"] for job in jobs(catalog)] == [0]


def test_waiting_for_a_worker_is_not_the_images_fault(
    avatar: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcode, seconds = Transcoder.transcode, 2.0

    async def crowded(transcoder: Transcoder, data: bytes, recipe: Recipe) -> Transcoded:
        await asyncio.sleep(seconds + 0.5)
        return await transcode(transcoder, data, recipe)

    monkeypatch.setattr(Transcoder, "transcode", crowded)
    monkeypatch.setattr(images_module, "IMAGE_SECONDS", seconds)
    tally = run(settings)
    assert (tally.published, tally.attempts_failed) == (1, {})


def test_an_image_that_takes_too_long_is_tried_again(
    avatar: World, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    avatar.origin.misbehaviour.order(avatar_path(avatar), Fault.SLOW)
    monkeypatch.setattr(images_module, "IMAGE_SECONDS", 0.3)
    tally = run(settings, collection=replace(QUICK, retry=retries(0.6)), stages=EVERYTHING)
    assert tally.attempts_failed[FailureKind.IMAGE_TIMEOUT] >= 1
    monkeypatch.undo()
    make_due(catalog)
    run(settings)
    assert len(view(catalog)) == 1


def test_an_error_nobody_expected_costs_one_image(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world(profiles=2, posts=1)
    poison = str(world.profile_ids[0])

    def key(prefix: str, owner_id: str, *rest: str) -> str:
        if owner_id == poison:
            raise KeyError("\x00nobody expected this\udc80")
        return rendition_key(prefix, owner_id, *rest)

    monkeypatch.setattr(images_module, "rendition_key", key)
    tally = run(settings)
    assert tally.published == len([row for row in images(catalog) if row["owner_id"] != poison]) > 0
    assert tally.failures == {FailureKind.INTERNAL_ERROR: tally.images - tally.published}
    assert "nobody expected this" in image(catalog, poison)["processing_error"]


def test_every_fault_at_once_ends_as_the_design_says(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, origin: Origin
) -> None:
    world = small_world(profiles=8, posts=0, seed=5)
    with world.engine.connect() as connection:
        found = connection.execute(sa.select(profiles_table.c.id, profiles_table.c.profile_pic_url_hd))
        urls = {row.id: row.profile_pic_url_hd for row in found}
    ends: Mapping[Fault, tuple[str, str | None]] = {
        Fault.RATE_LIMITED: ("completed", None),
        Fault.SLOW: ("completed", None),
        Fault.TRUNCATED: ("completed", None),
        Fault.SERVER_ERROR: ("completed", None),
        Fault.HTML_PAGE: ("pending", "not_an_image"),
        Fault.STALE_URL: ("pending", "source_url_404"),
        Fault.GONE: ("pending", "source_url_404"),
    }
    faulty = dict(zip(world.profile_ids, ends, strict=False))
    for profile_id, fault in faulty.items():
        attempts = 1000 if fault is Fault.HTML_PAGE else 1  # whichever URL is asked, and after a breaker's pause again
        origin.misbehaviour.order(urlsplit(urls[profile_id]).path, fault, attempts=attempts)
    tally = run(settings, collection=replace(INSTAGRAM, recipe=QUICK.recipe, retry=retries(0.2, 2.5)))
    for profile_id, fault in faulty.items():
        row = image(catalog, profile_id)
        assert (row["processing_status"], row["failure_kind"]) == ends[fault], fault
    assert (tally.images, tally.published, tally.failed) == (8, 5, 3)
    assert job_states(catalog) == {"completed": 5, "failed": 3}
    assert len(view(catalog)) == 5
    assert len(rows(catalog, "SELECT * FROM cdn_image_urls")) == 8


def test_a_url_that_died_long_ago_costs_no_request(small_world: SmallWorld, settings: Settings) -> None:
    world = small_world(profiles=2, posts=1)

    def age(mirror: Mirror) -> None:
        with mirror.catalog.begin() as connection:
            connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '2 hours'"))

    tally = run(settings, prepare=age)
    assert tally.failures == {FailureKind.SOURCE_URL_EXPIRED: tally.images}
    assert world.origin.requests.total == 0
