"""The drill: a mirrored world loses its catalog, or gets an old backup of it, and the stores alone bring it back."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.embedded_programs import programs_for
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.app_database import add_post, profiles_table, replace_avatar, resign_all
from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.queue.erasures import Erasure, ErasureState, list_erasures
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectStore
from cdn_pipeline.upkeep import rebuild as rebuild_module
from cdn_pipeline.upkeep.erase import Eraser, Target
from cdn_pipeline.upkeep.rebuild import Count, DamagedTombstoneError, Rebuild, Rebuilt
from cdn_pipeline.upkeep.stores import Stores, open_stores
from cdn_pipeline_tests.engine.runs import (
    EVERYTHING,
    folder,
    image,
    images,
    job_states,
    jobs,
    objects_in,
    renditions,
    rows,
    run,
    view,
)
from cdn_pipeline_tests.pipelines import BASE_URL
from cdn_pipeline_tests.queue.catalogs import refuse_illegal_transitions
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.world import SmallWorld, World

__all__ = ["moto_server"]

View = dict[tuple[str, str, str], dict[str, Any]]


@dataclass(frozen=True)
class Drill:
    """A mirrored world, and what can happen to its catalog."""

    world: World
    settings: Settings
    catalog: sa.Engine
    backup_file: Path

    @property
    def stores(self) -> Stores:
        return open_stores(self.settings)

    def run(self, **options: Any) -> int:
        """A run with discovery; returns how many requests the origin got."""
        self.world.origin.requests.reset()
        run(self.settings, **options)
        return self.world.origin.requests.total

    def public(self) -> View:
        """What the view shows, and the placeholder; the ids of our own rows are not public."""
        placeholders = {row["id"]: row["placeholder"] for row in images(self.catalog)}
        return {
            key: {**row, "asset_id": None, "placeholder": placeholders[row["asset_id"]]}
            for key, row in view(self.catalog).items()
        }

    def lose_catalog(self) -> None:
        """Everything is dropped; an empty catalog is migrated in its place."""
        with self.catalog.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        migrate(self.catalog, BASE_URL)
        refuse_illegal_transitions(self.catalog)

    def back_up(self) -> None:
        self._postgres("pg_dump", "--format=custom", f"--file={self.backup_file}", f"--dbname={self._url}")

    def restore_backup(self) -> None:
        with self.catalog.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        self._postgres("pg_restore", f"--dbname={self._url}", str(self.backup_file))

    @property
    def _url(self) -> str:
        url = self.catalog.url.set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def _postgres(self, program: str, *arguments: str) -> None:
        subprocess.run([programs_for(None) / program, *arguments], check=True, capture_output=True)

    def rebuild(self, **options: Any) -> Rebuilt:
        options = {"dry_run": False} | options
        *_, rebuilt = Rebuild(self.catalog, INSTAGRAM, self.stores, **options).run()
        return rebuilt

    def replace_avatar(self, profile: int = 0) -> str:
        """Returns the profile's id."""
        profile_id = self.world.profile_ids[profile]
        replace_avatar(self.world.engine, self.world.origin.signer, profile_id, now=self.world.origin.now())
        return str(profile_id)


Mirror = Callable[..., Drill]


@pytest.fixture
def mirror(small_world: SmallWorld, environment: Mapping[str, str], catalog: sa.Engine, tmp_path: Path) -> Mirror:
    """Mirrors a small world; `more` are settings."""

    def mirror(*, profiles: int = 2, posts: int = 2, **more: Any) -> Drill:
        values: dict[str, Any] = {name.lower(): value for name, value in environment.items()} | more
        settings = Settings(_env_file=None, **values)  # type: ignore[call-arg]
        refuse_illegal_transitions(catalog)
        drill = Drill(small_world(profiles=profiles, posts=posts), settings, catalog, tmp_path / "backup")
        drill.run()
        return drill

    return mirror


@pytest.fixture
def drill(mirror: Mirror) -> Drill:
    return mirror(profiles=2, posts=0)


def on_s3(server: S3Server) -> dict[str, Any]:
    return {
        "object_store_url": f"s3://{server.new_bucket()}",
        "originals_store_url": f"s3://{server.new_bucket()}",
        "r2_endpoint_url": server.endpoint_url,
        "r2_access_key_id": server.access_key_id,
        "r2_secret_access_key": server.secret_access_key,
    }


def current(catalog: sa.Engine) -> set[tuple[str, str, str]]:
    """(path, original, recipe) of what is current."""
    return {
        (row["path"], row["original_sha256"], f"{row['recipe']}/{row['recipe_version']}")
        for row in renditions(catalog)
        if row["state"] == "current"
    }


def relabel(settings: Settings, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Changes the metadata of every object in folder stores."""
    for url in (settings.objects_url, settings.originals_url):
        for manifest in (folder(url) / ".meta").rglob("*.json"):
            manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))


AS_BEFORE = ("collection", "owner", "source-type", "source-id", "media-id", "original", "recipe", "size")


def old_labels(metadata: dict[str, str]) -> dict[str, str]:
    """What objects said of themselves in the first version."""
    return {name: value for name, value in metadata.items() if name in (*AS_BEFORE, "Content-Type", "Cache-Control")}


# -- the catalog is lost --


@pytest.mark.parametrize("where", ["folders", "s3"])
def test_a_lost_catalog_comes_back_as_it_was_and_nothing_is_downloaded(
    mirror: Mirror, where: str, request: pytest.FixtureRequest
) -> None:
    drill = mirror(**on_s3(request.getfixturevalue("moto_server"))) if where == "s3" else mirror()
    drill.replace_avatar()
    drill.run()
    before, shown = drill.public(), current(drill.catalog)
    originals = {row["source_id"]: row["original_sha256"] for row in images(drill.catalog)}

    drill.lose_catalog()
    rebuilt = drill.rebuild()

    assert drill.public() == before
    assert current(drill.catalog) == shown
    assert {row["source_id"]: row["original_sha256"] for row in images(drill.catalog)} == originals
    assert rebuilt.counts[Count.NEW] == len(before)
    assert (rebuilt.counts[Count.UNDESCRIBED], rebuilt.counts[Count.MISSING], jobs(drill.catalog)) == (0, 0, [])
    assert drill.run() == 0
    assert drill.public() == before
    assert jobs(drill.catalog) == []


def test_the_next_scan_gives_restored_images_their_urls(drill: Drill) -> None:
    facts = "SELECT source_id, media_id, source_url, identity, rank, url_expires_at, taken_at, original_rank"
    before = rows(drill.catalog, f"{facts} FROM cdn_image_assets ORDER BY 1, 2")
    drill.lose_catalog()
    drill.rebuild()
    drill.run()
    assert rows(drill.catalog, f"{facts} FROM cdn_image_assets ORDER BY 1, 2") == before


def test_urls_that_were_signed_again_meanwhile_are_noted_without_a_download(drill: Drill) -> None:
    before = drill.public()
    drill.lose_catalog()
    drill.world.origin.advance_clock(timedelta(hours=1))
    resign_all(drill.world.engine, drill.world.origin.signer, now=drill.world.origin.now())
    drill.rebuild()
    assert drill.run() == 0
    assert drill.public() == before


def test_a_picture_that_changed_while_there_was_no_catalog_is_downloaded(drill: Drill) -> None:
    before = drill.public()
    drill.lose_catalog()
    owner = drill.replace_avatar()
    drill.rebuild()
    assert drill.public() == before
    assert drill.run() == 1
    assert {key for key, row in drill.public().items() if row != before[key]} == {("profile_avatar", owner, "avatar")}


def test_a_picture_that_came_back_is_the_one_that_is_shown(drill: Drill) -> None:
    with drill.world.engine.connect() as connection:
        [first, *_] = connection.execute(sa.select(profiles_table).order_by(profiles_table.c.id)).mappings().all()
    before = drill.public()
    replace_avatar(drill.world.engine, drill.world.origin.signer, first["id"], now=drill.world.origin.now())
    drill.run()
    assert drill.public() != before
    with drill.world.engine.begin() as connection:
        same = {**first, "updated_at": drill.world.origin.now()}
        connection.execute(profiles_table.update().where(profiles_table.c.id == first["id"]).values(same))
    drill.run()
    assert drill.public() == before

    drill.lose_catalog()
    drill.rebuild()

    assert drill.public() == before
    assert drill.run() == 0


def test_a_store_that_was_copied_tells_the_latest_picture_by_its_labels(drill: Drill) -> None:
    drill.replace_avatar()
    drill.run()
    before = drill.public()
    for file in folder(drill.settings.objects_url).rglob("*.webp"):  # what was stored later was copied first
        copied = 2e9 - file.stat().st_mtime
        os.utime(file, (copied, copied))
    drill.lose_catalog()
    drill.rebuild()
    assert drill.public() == before


def test_objects_with_the_labels_of_the_first_version_are_shown_again(drill: Drill) -> None:
    before = drill.public()
    relabel(drill.settings, old_labels)
    drill.lose_catalog()
    rebuilt = drill.rebuild()
    restored = drill.public()
    assert rebuilt.counts[Count.UNDESCRIBED] == 0
    assert {key: {**row, "taken_at": None, "placeholder": None} for key, row in before.items()} == restored
    drill.run()
    assert {key: row["cdn_path_512"] for key, row in drill.public().items()} == {
        key: row["cdn_path_512"] for key, row in before.items()
    }


def test_what_was_encoded_for_a_run_that_did_not_publish_is_shown(mirror: Mirror) -> None:
    drill = mirror(posts=0)
    drill.replace_avatar()
    drill.run(stages=EVERYTHING - {Stage.PUBLISH})
    before = drill.public()
    drill.lose_catalog()
    drill.rebuild()
    after = drill.public()
    assert len([key for key in before if before[key]["cdn_path_512"] != after[key]["cdn_path_512"]]) == 1
    assert drill.run() == 0
    assert drill.public() == after


def test_an_original_that_was_never_encoded_is_encoded_and_not_downloaded_again(mirror: Mirror) -> None:
    drill = mirror(posts=0)
    published = drill.public()
    post = add_post(
        drill.world.engine, drill.world.origin.signer, drill.world.profile_ids[0], now=drill.world.origin.now()
    )
    assert drill.run(stages=frozenset({Stage.DOWNLOAD})) > 0
    drill.lose_catalog()
    rebuilt = drill.rebuild()
    assert drill.public() == published
    assert rebuilt.counts[Count.REPAIRS] > 0
    assert drill.run() == 0
    assert str(post) in {source_id for _, source_id, _ in drill.public()}


def test_a_picture_that_lost_one_size_is_made_whole_from_its_original(drill: Drill) -> None:
    before = drill.public()
    lost = folder(drill.settings.objects_url) / next(iter(before.values()))["cdn_path_256"].removeprefix("/")
    lost.unlink()
    drill.lose_catalog()
    rebuilt = drill.rebuild()
    assert rebuilt.counts[Count.REPAIRS] == 1
    assert drill.run() == 0
    assert drill.public() == before


def test_of_a_picture_that_lost_one_size_the_picture_before_is_shown_whole(mirror: Mirror) -> None:
    drill = mirror(profiles=1, posts=0)
    [before] = drill.public().values()
    drill.replace_avatar()
    drill.run()
    [after] = drill.public().values()
    (folder(drill.settings.objects_url) / after["cdn_path_256"].removeprefix("/")).unlink()
    drill.lose_catalog()
    drill.rebuild()
    [shown] = drill.public().values()
    assert (shown["cdn_path_256"], shown["cdn_path_512"]) == (before["cdn_path_256"], before["cdn_path_512"])


def test_an_original_that_is_lost_is_found_missing(mirror: Mirror) -> None:
    drill = mirror(profiles=1, posts=0)
    [row] = images(drill.catalog)
    before = drill.public()
    asyncio.run(drill.stores.originals.delete(original_key(row["original_sha256"])))
    drill.lose_catalog()
    rebuilt = drill.rebuild()
    assert (drill.public(), rebuilt.counts[Count.MISSING]) == (before, 1)


# -- how it is done --


def test_a_dry_run_counts_the_same_and_changes_nothing(drill: Drill) -> None:
    drill.lose_catalog()
    told = drill.rebuild(dry_run=True).counts
    assert (images(drill.catalog), renditions(drill.catalog), jobs(drill.catalog)) == ([], [], [])
    assert told == drill.rebuild().counts


def test_nobody_waits_for_a_dry_run(drill: Drill) -> None:
    """At no page does it hold a transaction, and what it tells does not send the sensor to read every row."""
    watermarks = rows(drill.catalog, "SELECT * FROM cdn_source_watermarks ORDER BY shard")
    pages = 0
    for _ in Rebuild(drill.catalog, INSTAGRAM, drill.stores).run():
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        assert rows(drill.catalog, waiting) == []
        pages += 1
    assert pages > 2
    assert rows(drill.catalog, "SELECT * FROM cdn_source_watermarks ORDER BY shard") == watermarks != []


def test_a_rebuild_twice_changes_nothing_more(drill: Drill) -> None:
    drill.lose_catalog()
    drill.rebuild()
    before = (images(drill.catalog), renditions(drill.catalog))
    again = drill.rebuild()
    assert again.counts - drill.rebuild().counts == {}
    assert {count for count, number in again.counts.items() if number} == {Count.LISTED}
    assert (images(drill.catalog), renditions(drill.catalog)) == before


def test_a_rebuild_of_a_catalog_that_is_whole_changes_nothing(drill: Drill) -> None:
    drill.replace_avatar()
    drill.run()
    before = (images(drill.catalog), renditions(drill.catalog))
    drill.rebuild()
    assert (images(drill.catalog), renditions(drill.catalog)) == before


@pytest.mark.parametrize("page", [1, 3])
def test_a_rebuild_goes_on_where_another_was_killed(drill: Drill, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the smallest of pages, so that images lie across their borders."""
    before, shown = drill.public(), current(drill.catalog)
    in_small_pages(monkeypatch, page)
    drill.lose_catalog()
    for pages in range(1, 6):
        list(islice(Rebuild(drill.catalog, INSTAGRAM, drill.stores, dry_run=False).run(), pages))
    drill.rebuild()
    assert (drill.public(), current(drill.catalog)) == (before, shown)


def in_small_pages(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pages = ObjectStore.pages

    async def small_pages(self: ObjectStore, prefix: str = "") -> Any:
        async for page in pages(self, prefix):
            for start in range(0, len(page), size):
                yield page[start : start + size]

    monkeypatch.setattr(ObjectStore, "pages", small_pages)


def test_what_clean_up_has_in_hand_is_left_for_another_time(mirror: Mirror) -> None:
    drill = mirror(profiles=1, posts=0)
    before = drill.public()
    [row] = before.values()
    drill.lose_catalog()
    with drill.catalog.begin() as connection:
        mark = sa.text("INSERT INTO cdn_removed_objects (reference) VALUES (:path)")
        connection.execute(mark, {"path": row["cdn_path_256"]})
    assert drill.rebuild().counts[Count.IN_REMOVAL] == 1
    assert drill.public() == {}
    with drill.catalog.begin() as connection:
        connection.execute(sa.text("DELETE FROM cdn_removed_objects"))
    drill.rebuild()
    assert drill.run() == 0
    assert drill.public() == before


def test_what_was_marked_when_the_backup_was_made_and_put_again_since_is_brought_back(drill: Drill) -> None:
    before = drill.public()
    drill.lose_catalog()
    with drill.catalog.begin() as connection:
        mark = "INSERT INTO cdn_removed_objects (reference, marked_at) VALUES (:path, now() - interval '1 day')"
        connection.execute(sa.text(mark), [{"path": row["cdn_path_256"]} for row in before.values()])
    assert drill.rebuild().counts[Count.IN_REMOVAL] == 0
    assert drill.public() == before


# -- what the stores hold that is not ours to bring back --


def test_objects_that_do_not_say_what_they_are_are_named_and_left_alone(mirror: Mirror) -> None:
    drill = mirror(profiles=1, posts=0)
    strays: dict[str, dict[str, str]] = {
        "no metadata": {},
        "of another image": {"owner": "0" * 8 + "-0000-0000-0000-" + "0" * 12},
        "of another type": {"source-type": "poster"},
        "of no original": {"original": "A"},
        "without a number": {"recipe": "webp_thumbnails"},
        "of another size": {"size": "1024"},
        "of other bytes": {"sha256": "f" * 64},
        "of another time": {"observed": "2026-01-01"},
    }
    [row] = drill.public().values()
    name = folder(drill.settings.objects_url) / ".meta" / f"{row['cdn_path_256']}.json".removeprefix("/")
    described = json.loads(name.read_text())
    drill.lose_catalog()
    for change in strays.values():
        name.write_text(json.dumps({**described, **change} if change else {}))
        rebuilt = drill.rebuild(dry_run=True)
        [undescribed] = rebuilt.undescribed
        assert (rebuilt.counts[Count.UNDESCRIBED], f"/{undescribed.key}") == (1, row["cdn_path_256"])


def test_images_of_another_collection_are_left_to_it(drill: Drill) -> None:
    relabel(drill.settings, lambda metadata: metadata | {"collection": "vehicles"})
    drill.lose_catalog()
    rebuilt = drill.rebuild()
    assert images(drill.catalog) == []
    assert {each.reason for each in rebuilt.undescribed} == {"it is of the collection 'vehicles'"}


# -- what was erased --


def erase(drill: Drill, owner: object) -> None:
    Eraser.of(drill.settings, drill.catalog).erase(Target(str(owner)), requested_by="operator", reason="ticket")


def test_what_was_erased_stays_out_of_a_rebuilt_catalog(drill: Drill) -> None:
    owner = drill.world.profile_ids[0]
    erase(drill, owner)
    before = drill.public()
    drill.lose_catalog()
    assert drill.rebuild().counts[Count.TOMBSTONES] == 1
    assert drill.public() == before
    assert drill.run() == 0
    assert drill.public() == before


def test_objects_that_an_unfinished_erasure_left_stay_out_and_its_resumption_takes_them(drill: Drill) -> None:
    owner = str(drill.world.profile_ids[0])
    kept = {name: data for name, data in _files(drill).items() if owner in data.decode("latin-1") + name.as_posix()}
    kept |= {file: file.read_bytes() for meta in kept if (file := described_by(meta)).is_file()}
    originals = objects_in(drill.settings.originals_url)
    erase(drill, owner)
    before = drill.public()
    for file, data in kept.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    drill.lose_catalog()
    assert drill.rebuild().counts[Count.KEPT_OUT] > 0
    assert drill.public() == before
    [erasure] = unfinished(drill)
    assert Eraser.of(drill.settings, drill.catalog).go_on(erasure.id).state is ErasureState.PURGE_PENDING
    assert [key for key in objects_in(drill.settings.objects_url) if owner in key] == []
    left = {row["original_sha256"] for row in images(drill.catalog)}
    assert len(originals) > len(left)
    assert {key for key in objects_in(drill.settings.originals_url) if key in originals} == {
        original_key(sha256) for sha256 in left
    }


def unfinished(drill: Drill) -> list[Erasure]:
    with drill.catalog.connect() as connection:
        return list_erasures(connection, INSTAGRAM, unfinished=True)


def _files(drill: Drill) -> dict[Path, bytes]:
    """Of both stores, with what describes them."""
    stores = (drill.settings.objects_url, drill.settings.originals_url)
    return {file: file.read_bytes() for url in stores for file in folder(url).rglob("*") if file.is_file()}


def described_by(manifest: Path) -> Path:
    """The object whose metadata that is."""
    return Path(manifest.as_posix().replace("/.meta/", "/").removesuffix(".json"))


def test_an_erasure_can_be_lifted_or_repeated_after_the_catalog_was_lost(drill: Drill) -> None:
    before, owner = drill.public(), str(drill.world.profile_ids[0])
    erase(drill, owner)
    drill.lose_catalog()
    drill.rebuild()
    eraser = Eraser.of(drill.settings, drill.catalog)
    with drill.catalog.connect() as connection:
        [erasure] = list_erasures(connection, INSTAGRAM)
    assert (erasure.owner_id, erasure.scope, erasure.state) == (owner, "owner", ErasureState.DONE)
    assert eraser.go_on(erasure.id).state is ErasureState.PURGE_PENDING
    assert eraser.lift(erasure.id) == 1
    drill.run()
    assert drill.public() == before


def test_what_was_lifted_after_a_backup_is_kept(drill: Drill) -> None:
    owner = str(drill.world.profile_ids[0])
    erase(drill, owner)
    drill.back_up()
    [erasure] = unfinished(drill)
    Eraser.of(drill.settings, drill.catalog).lift(erasure.id)
    drill.run()
    before = drill.public()
    assert owner in {source_id for _, source_id, _ in before}

    drill.restore_backup()
    rebuilt = drill.rebuild()

    assert (rebuilt.counts[Count.LIFTED], rebuilt.counts[Count.KEPT_OUT]) == (1, 0)
    assert drill.public() == before
    assert unfinished(drill) == []
    assert drill.run() == 0


def test_an_empty_store_does_not_say_that_an_erasure_was_lifted(drill: Drill, tmp_path: Path) -> None:
    erase(drill, drill.world.profile_ids[0])
    empty = open_store(drill.settings, (tmp_path / "mistyped").as_uri())
    *_, rebuilt = Rebuild(drill.catalog, INSTAGRAM, Stores(drill.stores.renditions, empty), dry_run=False).run()
    assert rebuilt.counts[Count.LIFTED] == 0
    assert len(rows(drill.catalog, "SELECT * FROM cdn_tombstones")) == 1


def test_a_tombstone_that_was_never_copied_is_not_taken_for_lifted(drill: Drill) -> None:
    erase(drill, drill.world.profile_ids[0])
    before = drill.public()
    [tombstone] = (folder(drill.settings.originals_url) / "tombstones").iterdir()
    tombstone.unlink()
    with drill.catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_tombstones SET stored_at = NULL"))
    assert drill.rebuild().counts[Count.LIFTED] == 0
    drill.run()
    assert drill.public() == before


def test_what_was_erased_after_a_backup_leaves_the_backup(drill: Drill) -> None:
    drill.back_up()
    erase(drill, drill.world.profile_ids[0])
    before = drill.public()
    drill.restore_backup()
    assert drill.public() != before
    rebuilt = drill.rebuild()
    assert rebuilt.counts[Count.TAKEN_DOWN] > 0
    assert drill.public() == before
    assert drill.run() == 0
    assert drill.public() == before


def test_a_damaged_tombstone_stops_the_rebuild_before_anything_comes_back(drill: Drill) -> None:
    erase(drill, drill.world.profile_ids[0])
    [tombstone] = (folder(drill.settings.originals_url) / "tombstones").iterdir()
    tombstone.write_text("{")
    drill.lose_catalog()
    with pytest.raises(DamagedTombstoneError, match=tombstone.name):
        drill.rebuild()
    assert images(drill.catalog) == []


# -- an old backup --


@pytest.mark.parametrize("where", ["folders", "s3"])
def test_an_old_backup_is_brought_into_step(mirror: Mirror, where: str, request: pytest.FixtureRequest) -> None:
    drill = mirror(**on_s3(request.getfixturevalue("moto_server"))) if where == "s3" else mirror()
    drill.back_up()
    owner = drill.replace_avatar()
    add_post(drill.world.engine, drill.world.origin.signer, drill.world.profile_ids[1], now=drill.world.origin.now())
    assert drill.run() > 1
    before, shown = drill.public(), current(drill.catalog)

    drill.restore_backup()
    assert drill.public() != before
    rebuilt = drill.rebuild()

    assert drill.public() == before
    assert current(drill.catalog) == shown
    assert rebuilt.counts[Count.CHANGED] == 1
    assert image(drill.catalog, owner)["original_sha256"] in {original for _, original, _ in shown}
    assert drill.run() == 0
    assert drill.public() == before
    assert set(job_states(drill.catalog)) == {"completed"}


def test_what_a_backup_had_only_downloaded_is_shown_with_its_own_placeholder(drill: Drill) -> None:
    drill.replace_avatar()
    drill.run(stages=frozenset({Stage.DOWNLOAD}))
    drill.back_up()
    drill.run()
    before = shown_with_placeholders(drill)
    drill.restore_backup()
    assert shown_with_placeholders(drill) != before
    drill.rebuild()
    assert shown_with_placeholders(drill) == before


def shown_with_placeholders(drill: Drill) -> set[tuple[str, str | None]]:
    return {(row["cdn_path_512"], row["placeholder"]) for row in drill.public().values()}


def test_renditions_that_a_backup_names_and_the_store_lost_are_made_again(drill: Drill) -> None:
    drill.back_up()
    before = drill.public()
    lost = folder(drill.settings.objects_url) / next(iter(before.values()))["cdn_path_256"].removeprefix("/")
    data = lost.read_bytes()
    drill.restore_backup()
    lost.unlink()
    rebuilt = drill.rebuild()
    assert (rebuilt.counts[Count.MISSING], rebuilt.counts[Count.REPAIRS]) == (1, 1)
    assert drill.run() == 0
    assert (drill.public(), lost.read_bytes()) == (before, data)


def test_a_picture_that_came_back_after_the_backup_is_shown_again(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_module, "_CLOCKS_APART", timedelta())
    drill = mirror(profiles=1, posts=0)
    before = drill.public()
    with drill.world.engine.connect() as connection:
        row = connection.execute(sa.select(profiles_table)).mappings().one()
    drill.replace_avatar()
    drill.run()
    drill.back_up()
    with drill.world.engine.begin() as connection:
        connection.execute(profiles_table.update().values({**row, "updated_at": drill.world.origin.now()}))
    drill.run()
    drill.restore_backup()
    assert drill.public() != before
    drill.rebuild()
    assert drill.public() == before


def test_work_that_was_open_in_a_backup_and_is_done_in_the_stores_ends_well(drill: Drill) -> None:
    drill.replace_avatar()
    drill.run(limit=0)  # discovery alone: its job is open
    drill.back_up()
    drill.run()
    before = drill.public()
    drill.restore_backup()
    drill.rebuild()
    drill.run()
    assert drill.public() == before
    assert set(job_states(drill.catalog)) == {"completed"}
