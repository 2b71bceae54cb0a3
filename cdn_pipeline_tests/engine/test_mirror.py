"""Whole runs on a small world: what they leave behind, also when they are interrupted, killed, or two at once."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from aiohttp import web
from PIL import Image

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.app_database import create_tables, profiles_table, replace_avatar, resign_all
from cdn_pipeline.demo.origin import Origin
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.engine import mirror as mirror_module
from cdn_pipeline.engine import stream as stream_module
from cdn_pipeline.engine.mirror import Mirror, Progress
from cdn_pipeline.engine.pool import PoolUnusable, WorkerPool
from cdn_pipeline.media.transcode import ENCODERS
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectStore, cache_control
from cdn_pipeline_tests.engine import pool_tasks
from cdn_pipeline_tests.engine.runs import (
    EVERYTHING,
    QUICK,
    assert_nothing_in_hand,
    folder,
    image,
    images,
    job_states,
    jobs,
    objects_in,
    open_mirror,
    renditions,
    reports,
    rows,
    run,
    view,
)
from cdn_pipeline_tests.s3 import S3Server, moto_server  # noqa: F401
from cdn_pipeline_tests.world import SmallWorld

ROOT = Path(__file__).parents[2]


def downloads(origin: Origin) -> dict[str, int]:
    """How often each picture was given out."""
    return {path: counts["ok"] for path, counts in origin.requests.by_path().items() if "ok" in counts}


def assert_all_published(catalog: sa.Engine, settings: Settings) -> None:
    """Every image once: one job, one rendition of each size, its object, its original, nothing in hand."""
    found = images(catalog)
    assert found
    assert {row["processing_status"] for row in found} == {"completed"}
    assert len(view(catalog)) == len(found)
    assert sorted(job["asset_id"] for job in jobs(catalog)) == sorted(row["id"] for row in found)
    assert job_states(catalog) == {"completed": len(found)}
    made = renditions(catalog)
    assert {row["state"] for row in made} == {"current"}
    assert len({(row["asset_id"], row["size_name"]) for row in made}) == len(made) == 2 * len(found)
    objects = objects_in(settings.objects_url)
    assert {row["path"] for row in made} == {f"/{key}" for key in objects}
    assert set(objects_in(settings.originals_url)) == {original_key(row["original_sha256"]) for row in found}
    assert_nothing_in_hand(catalog)


# -- from the source row to the URL --


def test_a_small_world_is_published_under_keys_that_hold_the_hash_of_their_bytes(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=3, posts=2)
    tally = run(settings, collection=INSTAGRAM)
    assert tally.published == tally.images == tally.downloaded == len(images(catalog)) >= 9
    assert_all_published(catalog, settings)
    objects = objects_in(settings.objects_url)
    for row in view(catalog).values():
        for size in (256, 512):
            data = objects[row[f"cdn_path_{size}"].removeprefix("/")]
            sha256 = hashlib.sha256(data).hexdigest()
            path = f"/th/ig/{row['owner_id']}/{row['media_id']}/{size}/{sha256[:16]}.webp"
            assert row[f"cdn_path_{size}"] == path
            assert row[f"cdn_url_{size}"] == settings.public_base_url + path
            assert row[f"content_hash_{size}"] == sha256
            assert row[f"file_size_{size}"] == len(data)
            with Image.open(BytesIO(data)) as picture:
                assert picture.format == "WEBP"
                assert picture.size == (row[f"width_{size}"], row[f"height_{size}"])
                assert max(picture.size) <= size
    for key, data in objects_in(settings.originals_url).items():
        assert key == original_key(hashlib.sha256(data).hexdigest())
    assert set(downloads(world.origin).values()) == {1}


def test_a_second_run_and_urls_signed_again_are_no_work(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=2, posts=2)
    run(settings)
    world.origin.requests.reset()
    before, files = renditions(catalog), _files(settings)
    assert run(settings).images == 0
    resign_all(world.engine, world.origin.signer)
    assert run(settings).images == 0
    assert world.origin.requests.total == 0
    assert renditions(catalog) == before
    assert _files(settings) == files
    assert_all_published(catalog, settings)
    with world.engine.connect() as connection:
        now = set(connection.scalars(sa.select(profiles_table.c.profile_pic_url_hd)))
    assert now <= {row["source_url"] for row in images(catalog)}


def _files(settings: Settings) -> dict[str, int]:
    """Every file of both stores, and when it was written."""
    roots = [folder(url) for url in (settings.objects_url, settings.originals_url)]
    return {str(path): path.stat().st_mtime_ns for root in roots for path in root.rglob("*") if path.is_file()}


def test_one_replaced_avatar_is_one_download_two_objects_and_a_new_url(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=3, posts=1)
    run(settings)
    world.origin.requests.reset()
    before, objects, files = view(catalog), objects_in(settings.objects_url), _files(settings)
    profile_id = world.profile_ids[1]
    picture = replace_avatar(world.engine, world.origin.signer, profile_id)
    tally = run(settings)
    assert (tally.images, tally.published, tally.renditions) == (1, 1, 2)
    assert downloads(world.origin) == {picture.path: 1}
    after = view(catalog)
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {("profile_avatar", str(profile_id), "avatar")}
    assert len(objects_in(settings.objects_url)) == len(objects) + 2
    assert objects.items() <= objects_in(settings.objects_url).items()
    assert files.items() <= _files(settings).items()
    states = [row["state"] for row in renditions(catalog) if row["asset_id"] == image(catalog, profile_id)["id"]]
    assert sorted(states) == ["current", "current", "superseded", "superseded"]


def test_objects_in_s3_carry_their_headers_and_what_a_catalog_can_be_rebuilt_from(
    small_world: SmallWorld,
    environment: Mapping[str, str],
    catalog: sa.Engine,
    moto_server: S3Server,
) -> None:
    world = small_world(profiles=1, posts=0)
    objects, originals = f"s3://{moto_server.new_bucket()}", f"s3://{moto_server.new_bucket()}"
    values: dict[str, Any] = {"_env_file": None, **{name.lower(): value for name, value in environment.items()}}
    values |= {
        "object_store_url": objects,
        "originals_store_url": originals,
        "r2_endpoint_url": moto_server.endpoint_url,
        "r2_access_key_id": moto_server.access_key_id,
        "r2_secret_access_key": moto_server.secret_access_key,
    }
    assert run(Settings(**values, browser_cache_days=7)).published == 1
    [row] = view(catalog).values()
    [asset] = images(catalog)
    head = asyncio.run(_head(moto_server.store(objects), row["cdn_path_512"].removeprefix("/")))
    assert (head.content_type, head.cache_control, head.size) == ("image/webp", cache_control(7), row["file_size_512"])
    described = {
        "collection": "instagram",
        "owner": str(world.profile_ids[0]),
        "source-type": "profile_avatar",
        "source-id": str(world.profile_ids[0]),
        "media-id": "avatar",
        "original": asset["original_sha256"],
        "identity": asset["identity"],
        "rank": str(asset["rank"]),
        "observed": asset["observed_at"].astimezone(UTC).isoformat(),
    }
    assert head.metadata == {
        **described,
        "recipe": f"webp_thumbnails/{INSTAGRAM.recipe.version}",
        "size": "512",
        "sha256": row["content_hash_512"],
        "width": str(row["width_512"]),
        "height": str(row["height_512"]),
        "encoder": ENCODERS["webp"],
        "placeholder": asset["placeholder"],
    }
    original = asyncio.run(_head(moto_server.store(originals), original_key(asset["original_sha256"])))
    assert (original.content_type, original.metadata) == ("image/jpeg", described)


async def _head(store: ObjectStore, key: str) -> Any:
    return await store.head(key)


# -- selections --


def test_originals_alone_then_renditions_alone_then_publication_without_one_more_request(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=2, posts=2)
    tally = run(settings, stages=frozenset({Stage.DOWNLOAD}))
    assert (tally.completed, tally.published, tally.renditions) == (tally.images, 0, 0)
    assert {job["stage"] for job in jobs(catalog)} == {"encode"}
    assert len(objects_in(settings.originals_url)) == tally.images
    assert objects_in(settings.objects_url) == {}

    world.origin.advance_clock(timedelta(days=30))  # no URL lives that long
    world.origin.requests.reset()
    tally = run(settings, stages=frozenset({Stage.ENCODE}))
    assert (tally.completed, tally.published, tally.renditions) == (tally.images, 0, 2 * tally.images)
    assert len(objects_in(settings.objects_url)) == 2 * tally.images
    assert view(catalog) == {}

    tally = run(settings, stages=frozenset({Stage.PUBLISH}))
    assert tally.published == tally.images
    assert world.origin.requests.total == 0
    assert_all_published(catalog, settings)


def test_encoding_and_publishing_from_originals_needs_no_living_url(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=2, posts=1)
    run(settings, stages=frozenset({Stage.DOWNLOAD}))
    world.origin.advance_clock(timedelta(days=30))
    world.origin.requests.reset()
    tally = run(settings, stages=frozenset({Stage.ENCODE, Stage.PUBLISH}))
    assert tally.published == tally.images > 0
    assert world.origin.requests.total == 0
    assert_all_published(catalog, settings)


def test_a_run_for_some_owners_leaves_the_others_alone(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=4, posts=1)
    owner = str(world.profile_ids[2])
    run(settings, owner_ids=[owner])
    assert {row["owner_id"] for row in view(catalog).values()} == {owner}
    for row in images(catalog):
        if row["owner_id"] != owner:
            assert (row["processing_status"], row["processing_attempts"]) == ("pending", 0)
    assert run(settings, owner_ids=[]).images == 0
    run(settings)
    assert_all_published(catalog, settings)


def test_a_limited_run_claims_no_more_than_its_limit(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=4, posts=1)
    assert run(settings, limit=3).published == 3
    assert world.origin.requests.total == 3
    run(settings)
    assert_all_published(catalog, settings)


def test_images_are_asked_for_in_the_order_of_their_deadlines(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "IN_HAND", 1)
    world = small_world(profiles=6, posts=2)
    run(settings)
    asked = list(world.origin.requests.by_path())
    query = """SELECT a.source_url FROM cdn_image_assets a JOIN cdn_image_jobs j ON j.asset_id = a.id
               ORDER BY j.priority, j.deadline"""
    wanted = [row["source_url"] for row in rows(catalog, query)]
    assert asked == [url.partition("?")[0].removeprefix(world.origin.base_url) for url in wanted]


# -- interrupts --


@dataclass
class Watch:
    """Looks at the view again and again: is there an object for every URL that is visible?"""

    catalog: sa.Engine
    objects: Path
    looks: int = 0
    missing: list[str] = field(default_factory=list)

    def look(self) -> int:
        """How many URLs are visible."""
        query = "SELECT cdn_path_256, cdn_path_512 FROM cdn_image_urls"
        paths = [path for row in rows(self.catalog, query) for path in row.values() if path]
        self.missing += [path for path in paths if not (self.objects / path.removeprefix("/")).exists()]
        self.looks += 1
        return len(paths)


@contextmanager
def watching(catalog: sa.Engine, settings: Settings) -> Iterator[Watch]:
    watch, ended = Watch(catalog, folder(settings.objects_url)), threading.Event()

    def keep_looking() -> None:
        while not ended.wait(0.02):
            watch.look()

    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(keep_looking)
        try:
            yield watch
        finally:
            ended.set()
            looking.result()
    assert watch.looks > 3
    assert watch.missing == []


def test_closing_the_iterator_releases_everything_and_the_next_run_finishes(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    small_world(
        profiles=16, posts=6
    )  # seconds of work, of which the first report (an empty shard's) sees the beginning
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
        finished = reports(mirror)
        next(finished)
        started = time.monotonic()
        finished.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 10
        assert_nothing_in_hand(catalog)  # while the run still holds its lock
        states = job_states(catalog)
        assert states["queued"] > 0
        assert states["completed"] + states["queued"] == len(images(catalog))
    run(settings)
    assert_all_published(catalog, settings)


def test_an_iterator_that_is_closed_before_its_first_shard_has_started_nothing(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    small_world(profiles=1, posts=1)
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
        stream = mirror.stream(SHARDS, Selection(QUICK, EVERYTHING))
        stream.close()  # type: ignore[attr-defined]
    assert {job["first_started_at"] for job in jobs(catalog)} == {None}


@pytest.mark.parametrize("visible", [0, 2, 20])
def test_a_run_killed_at_any_moment_loses_nothing_and_shows_nothing_half_done(
    small_world: SmallWorld,
    settings: Settings,
    environment: Mapping[str, str],
    catalog: sa.Engine,
    tmp_path: Path,
    visible: int,
) -> None:
    world = small_world(profiles=6, posts=3)
    with watching(catalog, settings) as watch:
        with _child(environment, tmp_path) as child:
            while watch.look() < visible or not rows(catalog, "SELECT FROM cdn_image_jobs WHERE status = 'processing'"):
                assert child.poll() is None, "the run ended before it was killed"
                time.sleep(0.002)
            child.kill()
            child.wait()
        assert watch.look() < 2 * len(images(catalog))
        run(settings)
    assert_all_published(catalog, settings)
    assert set(downloads(world.origin).values()) <= {1, 2}  # those in hand are downloaded again


@contextmanager
def _child(environment: Mapping[str, str], cwd: Path) -> Iterator["subprocess.Popen[bytes]"]:
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", "cdn_pipeline_tests.engine.child"], env=variables, cwd=cwd)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_two_runs_at_once_over_the_same_shards_do_everything_once(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "CLAIMED_AHEAD", 8)
    monkeypatch.setattr(stream_module, "IN_HAND", 4)
    world = small_world(profiles=3, posts=12)
    ready = threading.Barrier(2)
    with watching(catalog, settings), ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(run, settings, prepare=lambda mirror: ready.wait(30)) for _ in range(2)]
        tallies = [running.result() for running in runs]
    assert min(tally.published for tally in tallies) > 0
    assert sum(tally.published for tally in tallies) == len(images(catalog))
    assert_all_published(catalog, settings)
    assert set(downloads(world.origin).values()) == {1}


# -- workers --


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "multiprocessing.spawn" in " ".join(child.cmdline())]


def test_a_worker_killed_while_the_run_goes_on_costs_no_image(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "SETTLE_EVERY_SECONDS", 0.1)  # or all is done when the first is told
    small_world(profiles=6, posts=2)
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
        mirror.pool._workers[0].start_error.result()  # it is started and idle
        _workers()[0].send_signal(signal.SIGKILL)
        finished = reports(mirror)
        next(report for report in finished if report.tally.published)
        for worker in _workers():
            worker.send_signal(signal.SIGKILL)
        assert all(report.tally.failed == 0 for report in finished)
        assert mirror.pool.restarts >= 2
    assert_all_published(catalog, settings)


def test_workers_that_cannot_start_end_the_run_loudly_and_leave_no_lease(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    small_world(profiles=2, posts=2)

    def prepare(mirror: Mirror) -> None:
        mirror.pool.close()
        mirror.pool = WorkerPool(workers=2, task_seconds=5.0, modules=["no_such_module"])

    with pytest.raises(PoolUnusable, match="no_such_module"):
        run(settings, prepare=prepare)
    assert_nothing_in_hand(catalog)
    assert job_states(catalog) == {"queued": len(images(catalog))}
    run(settings)
    assert {row["processing_status"] for row in images(catalog)} == {"completed"}


# -- progress and memory --


def _tiny_pictures() -> web.Application:
    """A host that has a picture of 16 by 16 pixels under every path, and another one under each."""
    buffer = BytesIO()
    Image.effect_noise((16, 16), 60).convert("RGB").save(buffer, "JPEG")
    body = buffer.getvalue()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body + request.path.encode(), content_type="image/jpeg")

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", answer)])
    return application


def _add_profiles(engine: sa.Engine, base: str, numbers: Sequence[int]) -> None:
    create_tables(engine)
    with engine.begin() as connection:
        profiles = [
            {
                "id": hashlib.md5(str(number).encode()).hexdigest(),
                "username": str(number),
                "profile_pic_url": f"{base}/{number}.jpg",
            }
            for number in numbers
        ]
        connection.execute(
            sa.text("INSERT INTO profiles VALUES (CAST(:id AS uuid), :username, :profile_pic_url, NULL, now())"),
            profiles,
        )


def test_memory_does_not_grow_with_the_number_of_images(
    settings: Settings, catalog: sa.Engine, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PROGRESS_EVERY_SECONDS", 0.1)
    engine = sa.create_engine(empty_database)
    resident: dict[int, int] = {}  # bytes, by the number of images that are done
    with in_thread(listening(_tiny_pictures())) as base, open_mirror(settings) as mirror:
        _add_profiles(engine, base, range(1500))
        list(mirror.discover(SHARDS))
        for item in mirror.stream(SHARDS, Selection(QUICK, EVERYTHING)):
            if isinstance(item, Progress):
                resident[item.tally.images] = psutil.Process().memory_info().rss
    engine.dispose()
    assert len(view(catalog)) == 1500
    early = min(number for number in resident if number >= 200)
    late = max(resident)
    assert late > early + 500
    assert resident[late] - resident[early] < 24e6


def test_a_pool_worker_of_a_run_imports_what_transcodes_and_neither_dagster_nor_sql_nor_network(
    settings: Settings, catalog: sa.Engine
) -> None:
    heavy = ("dagster", "sqlalchemy", "psycopg", "alembic", "obstore", "aiohttp", "httpx", "pydantic", "typer")

    async def loaded(pool: WorkerPool, *modules: str) -> set[str]:
        return {module for module in modules if await pool.run(pool_tasks.loaded, module)}

    with open_mirror(settings) as mirror:
        assert asyncio.run(loaded(mirror.pool, "cdn_pipeline.media.transcode", *heavy)) == {
            "cdn_pipeline.media.transcode"
        }
