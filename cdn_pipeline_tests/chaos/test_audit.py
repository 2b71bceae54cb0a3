"""The audit of chaos can fail: every harm is a complaint."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from benchmarks.chaos.audit import complaints, dangling, doubled, lost, miscounted, orphaned, unfinished
from benchmarks.chaos.place import Place
from benchmarks.chaos.world import World, opened_world
from cdn_pipeline.catalog.tables import image_jobs
from cdn_pipeline.demo.app_database import add_post, delete_post
from cdn_pipeline.queue.leases import hold_run


@pytest.fixture(scope="module")
def mirrored(place: Place) -> Iterator[World]:
    """A world that one run has mirrored. Tests leave it as they found it."""
    with opened_world(place, "audited", profiles=1, posts=2) as world:
        assert world.run() == 0, world.log.read_text()
        yield world


def test_what_one_run_mirrored_has_no_complaints(mirrored: World) -> None:
    assert complaints(mirrored) == []


def test_a_picture_that_is_not_mirrored_is_lost(mirrored: World) -> None:
    with mirrored.source.connect() as connection:
        profile_id = connection.scalars(sa.text("SELECT id FROM profiles")).first()
    assert profile_id is not None
    post_id = add_post(mirrored.source, mirrored.signer, profile_id)
    found = list(lost(mirrored))
    delete_post(mirrored.source, post_id)
    assert found
    assert all("is not in the catalog" in complaint for complaint in found)


def test_a_picture_without_its_urls_is_lost(mirrored: World) -> None:
    one_image = "(SELECT id FROM cdn_image_assets ORDER BY id LIMIT 1)"
    change = f"UPDATE cdn_image_renditions SET state = '{{}}' WHERE asset_id = {one_image}"
    _execute(mirrored, change.format("superseded"))
    found = list(lost(mirrored))
    _execute(mirrored, change.format("current"))
    assert len(found) == 1
    assert "is completed" in found[0]


@pytest.mark.parametrize(
    ("replacement", "words"), [(None, "not in the store"), (b"something else", "other bytes")], ids=["gone", "replaced"]
)
def test_a_url_without_its_object_dangles(mirrored: World, replacement: bytes | None, words: str) -> None:
    store = mirrored.store(mirrored.objects_url)

    async def tamper() -> tuple[str, bytes, list[str]]:
        key = min([key async for key in store.list("th")])
        data = await store.get(key)
        await store.delete(key)
        if replacement is not None:
            await store.put_new(key, replacement, content_type="image/webp")
        return key, data, list(await asyncio.to_thread(lambda: list(dangling(mirrored))))

    async def mend(key: str, data: bytes) -> None:
        await store.delete(key)
        await store.put_new(key, data, content_type="image/webp")

    key, data, found = asyncio.run(tamper())
    asyncio.run(mend(key, data))
    assert len(found) == 1
    assert key in found[0]
    assert words in found[0]


def test_a_second_completed_job_is_doubled_and_miscounted(mirrored: World) -> None:
    copied = ", ".join(
        column.name for column in image_jobs.c if not (column.computed or column.name in ("id", "worker_id"))
    )
    _execute(
        mirrored,
        f"INSERT INTO cdn_image_jobs (id, worker_id, {copied}) "
        f"SELECT gen_random_uuid(), 'a second one', {copied} FROM cdn_image_jobs LIMIT 1",
    )
    found = [*doubled(mirrored), *miscounted(mirrored)]
    _execute(mirrored, "DELETE FROM cdn_image_jobs WHERE worker_id = 'a second one'")
    assert any("2 completed jobs" in complaint for complaint in found)
    assert any(complaint.startswith("miscounted") for complaint in found)


def test_a_run_that_holds_its_lock_is_unfinished(mirrored: World) -> None:
    with hold_run(mirrored.catalog, "a run"):
        assert list(unfinished(mirrored)) == ["unfinished: 1 runs that hold a lock"]


def test_a_process_that_outlives_its_run_is_an_orphan(mirrored: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.chaos.world._ORPHAN_SECONDS", 0.1)
    sleeper = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(sleeper, env=dict(mirrored.environment), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # until then it may still have this process's environment
        found = list(orphaned(mirrored))
        process.kill()
    assert len(found) == 1
    assert str(process.pid) in found[0]


def _execute(world: World, statement: str) -> None:
    with world.catalog.begin() as connection:
        connection.execute(sa.text(statement))
