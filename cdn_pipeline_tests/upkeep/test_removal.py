"""No object that a row refers to is ever removed, however runs publish while clean-up removes."""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue import references
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.references import half_removed, mark_unreferenced, removals
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.store.folder import FolderStore
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectStore, StoreUnavailable
from cdn_pipeline.upkeep import removal, requests
from cdn_pipeline.upkeep.clean_up import CleanUp
from cdn_pipeline.upkeep.removal import remove_half_removed, remove_unreferenced
from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline_tests.queue.catalogs import RUN, reference, see, session, take
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.upkeep.mirrored import original_of, published, put, renditions_of, sha256

__all__ = ["moto_server"]

GRACE = timedelta(days=30)
AGES = timedelta(days=40)
IMAGES = ("0", "1")
CONTENTS = "xy"


@pytest.fixture(autouse=True)
def _one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an interleaving that fails can be repeated."""
    monkeypatch.setattr(requests, "AT_ONCE", 1)


class Interrupted(FolderStore):
    """A folder store during whose work others work as well."""

    def __init__(self, folder: Path, interlude: Callable[[], None]) -> None:
        super().__init__(folder, folder.as_uri())
        self.interlude = interlude

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.interlude)
        await super().delete(key)
        await asyncio.to_thread(self.interlude)


def paths(content: str) -> list[str]:
    return [rendition.path for rendition, _ in renditions_of("avatar", content)]


class World:
    """Two images that share their keys, attempts at them, clean-ups, and time: a step of each at a time."""

    def __init__(self, catalog: sa.Engine, folder: Path, steps: Iterable[tuple[str, str, str]]) -> None:
        self.catalog = catalog
        self.steps = deque(steps)
        self.plain = Stores(FolderStore(folder / "r", "file:///r"), FolderStore(folder / "o", "file:///o"))
        self.stores = Stores(Interrupted(folder / "r", self.interlude), Interrupted(folder / "o", self.interlude))
        self.folder = folder
        self.jobs: dict[str, DueJob] = {}
        self.brought: dict[str, str] = {}
        with session(catalog) as connection:
            connection.execute(sa.text("TRUNCATE cdn_image_assets, cdn_image_jobs, cdn_removed_objects CASCADE"))
            see(connection, *(reference(image=image) for image in IMAGES))

    def play(self) -> None:
        while self.steps:
            self.step(may_clean=True)

    def interlude(self) -> None:
        """Others' steps, until it is clean-up's turn again."""
        while self.steps:
            if self.steps[0][0] in ("clean", "go on"):
                self.steps.popleft()
                return
            self.step(may_clean=False)

    def step(self, *, may_clean: bool) -> None:
        action, image, content = self.steps.popleft()
        match action:
            case "claim":
                self.claim(image)
            case "put" if image in self.jobs:
                self.put(image, content)
            case "settle" if image in self.brought:
                self.settle(image)
            case "begin" if image not in self.jobs:
                self.claim(image)
                self.put(image, content)
            case "publish" if image not in self.jobs:
                self.claim(image)
                self.put(image, content)
                self.settle(image)
            case "age":
                self.age()
            case "clean" if may_clean:
                self.clean_up()
        self.check()

    def claim(self, image: str) -> None:
        if image in self.jobs:
            return
        with session(self.catalog) as connection:
            connection.execute(_OPEN_JOB, {"image": image})
            self.jobs |= {job.source_id: job for job in take(connection)}

    def put(self, image: str, content: str) -> None:
        put(self.plain, "avatar", content)
        self.brought[image] = content

    def settle(self, image: str) -> None:
        with self.catalog.begin() as connection:
            settle(connection, RUN, [published(self.jobs.pop(image), self.brought.pop(image))])

    def age(self) -> None:
        """Everything becomes older than any grace period, also what an attempt has put that goes on for so long."""
        with self.catalog.begin() as connection:
            connection.execute(
                sa.text("UPDATE cdn_image_renditions SET superseded_at = superseded_at - CAST(:ages AS interval)"),
                {"ages": AGES},
            )
        for file in self.folder.rglob("*"):
            if file.is_file():
                then = file.stat().st_mtime - AGES.total_seconds()
                os.utime(file, (then, then))

    def clean_up(self) -> None:
        list(CleanUp(self.catalog, INSTAGRAM, self.stores, GRACE, dry_run=False, force=True).run())

    def objects(self) -> set[str]:
        """The paths and SHA-256s that the stores have."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and ".meta" not in file.parts]
        return {f"/{file.relative_to(self.folder / 'r').as_posix()}" if file.suffix else file.name for file in files}

    def referred_to(self) -> set[str]:
        with session(self.catalog) as connection:
            return set(connection.scalars(_REFERRED_TO))

    def check(self) -> None:
        assert self.referred_to() <= self.objects(), "a row refers to an object that is gone"


_OPEN_JOB = sa.text("""
    INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url)
    SELECT id, collection, shard, 'update', source_url FROM cdn_image_assets WHERE source_id = :image
    ON CONFLICT (asset_id) WHERE status IN ('queued', 'processing')
    DO UPDATE SET next_attempt_at = clock_timestamp()
""")

_REFERRED_TO = sa.text("""
    SELECT path FROM cdn_image_renditions UNION SELECT original_sha256 FROM cdn_image_renditions
    UNION SELECT original_sha256 FROM cdn_image_assets WHERE original_sha256 IS NOT NULL
""")

PUT_X = [("claim", "0", ""), ("put", "0", "x")]
PUBLISH_X = ("publish", "0", "x")
OLD_X_IS_SUPERSEDED = [PUBLISH_X, ("publish", "0", "y"), ("age", "", "")]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "put", "begin", "settle", "publish", "age", "clean", "go on"]),
        st.sampled_from(IMAGES),
        st.sampled_from(CONTENTS),
    ),
    max_size=20,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_has_its_object_whatever_happens_while_clean_up_removes(
    catalog: sa.Engine, steps: list[tuple[str, str, str]]
) -> None:
    with TemporaryDirectory() as folder:
        world = World(catalog, Path(folder), [*OLD_X_IS_SUPERSEDED, *steps])
        world.play()
        for action in ("age", "clean"):
            world.steps.append((action, "", ""))
            world.play()
        assert world.objects() == world.referred_to(), "what nothing refers to is still there"


@pytest.mark.parametrize("image", IMAGES)
def test_a_picture_that_comes_back_while_its_object_is_removed_is_published_by_another_attempt(
    catalog: sa.Engine, tmp_path: Path, image: str
) -> None:
    attempt = [("claim", image, ""), ("put", image, "x")]
    world = World(catalog, tmp_path, [*OLD_X_IS_SUPERSEDED, *attempt, ("clean", "", "")])
    world.play()
    assert paths("x")[0] not in world.objects()
    world.steps.append(("settle", image, ""))
    world.play()
    with session(catalog) as connection:
        job = connection.execute(sa.text("SELECT * FROM cdn_image_jobs WHERE status = 'queued' AND retry_count = 0"))
        assert str(job.mappings().first()["stage"]) == Stage.DOWNLOAD  # type: ignore[index]
    world.steps.extend([*attempt, ("settle", image, "")])
    world.play()
    with session(catalog) as connection:
        current = connection.scalars(sa.text("SELECT path FROM cdn_image_renditions WHERE state = 'current'"))
        assert set(paths("x")) <= set(current)


def test_an_outcome_that_was_overtaken_is_not_among_those_that_were_written(catalog: sa.Engine, tmp_path: Path) -> None:
    world = World(catalog, tmp_path, [*OLD_X_IS_SUPERSEDED, *PUT_X, ("clean", "", "")])
    world.play()
    with catalog.begin() as connection:
        assert settle(connection, RUN, [published(world.jobs["0"], "x")]) == set()


def test_who_does_not_know_when_an_object_was_seen_is_refused(catalog: sa.Engine, tmp_path: Path) -> None:
    world = World(catalog, tmp_path, [*OLD_X_IS_SUPERSEDED, ("clean", "", ""), ("claim", "0", "")])
    world.play()
    with catalog.begin() as connection:
        put(world.plain, "avatar", "x")
        assert settle(connection, RUN, [replace(published(world.jobs["0"], "x"), claimed_at=None)]) == set()


def test_nobody_publishes_what_a_killed_clean_up_has_marked_until_the_next_one_has_removed_it(
    catalog: sa.Engine, tmp_path: Path
) -> None:
    world = World(catalog, tmp_path, [*OLD_X_IS_SUPERSEDED])
    world.play()
    x = paths("x")
    with catalog.begin() as connection:
        connection.execute(sa.text("DELETE FROM cdn_image_renditions WHERE state = 'superseded'"))
        assert mark_unreferenced(connection, paths=[*x, *paths("y")]) == set(x)
    for _ in range(2):
        world.steps.append(PUBLISH_X)
        world.play()
        assert not world.referred_to() & set(x)
    assert remove_half_removed(catalog, world.plain, 100) == len(x)
    assert not world.objects() & set(x)
    world.steps.append(PUBLISH_X)
    world.play()
    assert world.referred_to() >= set(x)


def test_what_the_store_does_not_delete_stays_marked(catalog: sa.Engine, tmp_path: Path) -> None:
    class Refusing(FolderStore):
        async def delete(self, key: str) -> None:
            raise StoreUnavailable(key)

    world = World(catalog, tmp_path, [])
    put(world.plain, "avatar", "x")
    path = paths("x")[0]
    refusing = Stores(Refusing(tmp_path / "r", "file:///r"), world.plain.originals)
    with pytest.raises(StoreUnavailable):
        remove_unreferenced(catalog, refusing, paths=[path])
    with catalog.connect() as connection:
        assert half_removed(connection, 10) == [path]


def test_a_mark_from_a_restored_catalog_takes_nothing_that_a_row_refers_to(catalog: sa.Engine, tmp_path: Path) -> None:
    world = World(catalog, tmp_path, [("publish", "0", "x")])
    world.play()
    x = [*paths("x"), sha256(original_of("x"))]
    with catalog.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO cdn_removed_objects (reference) SELECT unnest(CAST(:references AS text[]))"),
            {"references": [*x, "/gone"]},
        )
    assert remove_half_removed(catalog, world.plain, 100) == 1
    assert world.objects() >= set(paths("x"))
    with catalog.begin() as connection:
        assert None not in removals(connection, x).removed_at.values()


def test_who_has_lost_the_lock_removes_nothing_more(
    catalog: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(FolderStore):
        """At whose first removal the catalog ends the remover's session."""

        async def delete(self, key: str) -> None:
            with catalog.begin() as connection:
                connection.execute(
                    sa.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = :key"
                    ),
                    {"key": references._REMOVER_LOCK},
                )
            await super().delete(key)

    monkeypatch.setattr(removal, "GROUP", 1)
    world = World(catalog, tmp_path, [])
    put(world.plain, "avatar", "x")
    cut = Stores(Cut(tmp_path / "r", "file:///r"), world.plain.originals)
    with pytest.raises(sa.exc.OperationalError):
        remove_unreferenced(catalog, cut, paths=paths("x"))
    assert len(world.objects() & set(paths("x"))) == 1
    assert remove_half_removed(catalog, world.plain, 100) == 1
    assert not world.objects() & set(paths("x"))


def test_a_session_that_does_not_hold_the_lock_removes_nothing(catalog: sa.Engine) -> None:
    with references.sole_remover(catalog) as remover:
        remover.require_lock()
        remover.connection.execute(sa.text("SELECT pg_advisory_unlock_all()"))
        with pytest.raises(references.RemoverLostError):
            remover.require_lock()


def test_on_s3_too(catalog: sa.Engine, tmp_path: Path, moto_server: S3Server) -> None:
    world = World(catalog, tmp_path, [])
    stores = Stores(*(moto_server.store(f"s3://{moto_server.new_bucket()}") for _ in range(2)))
    for content in CONTENTS:
        put(stores, "avatar", content)
    world.claim("0")
    world.brought["0"] = "x"
    world.settle("0")
    sha256s = [sha256(original_of(content)) for content in CONTENTS]
    removed = remove_unreferenced(catalog, stores, paths=[*paths("x"), *paths("y")], originals=sha256s)
    assert removed == {*paths("y"), sha256s[1]}
    assert asyncio.run(keys(stores.renditions)) == {path.removeprefix("/") for path in paths("x")}
    assert asyncio.run(keys(stores.originals)) == {original_key(sha256s[0])}
    with catalog.begin() as connection:
        assert None not in removals(connection, sorted(removed)).removed_at.values()


async def keys(store: ObjectStore) -> set[str]:
    return {key async for key in store.list()}
