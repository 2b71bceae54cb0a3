"""Erasure of a mirrored small world: real Postgres, stores in folders and in S3, and a stand-in for Cloudflare."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.queue.erasures import ErasureState, list_erasures, list_objects, read_erasure
from cdn_pipeline.queue.refreshes import Limits, open_refresh
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.tombstones import UNKNOWN_IDENTITY, Candidate, kept_out
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.discovery import ImageKey
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectStore, StoreUnavailable
from cdn_pipeline.upkeep.clean_up import CleanUp, Kind
from cdn_pipeline.upkeep.erase import INTERRUPTED_AFTER, Eraser, LiftRefusedError, Target, expire_private_profiles
from cdn_pipeline.upkeep.erasure_plan import erasures_of, plan_erasure
from cdn_pipeline.upkeep.tombstones import bring_all_back, read_copies
from cdn_pipeline_tests.cloudflare.zone import Zone, running_zone
from cdn_pipeline_tests.engine.runs import folder, images, objects_in, rows, run, view
from cdn_pipeline_tests.queue.catalogs import RUN, published, reference, register, see, session, source_url, take_one
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.world import SmallWorld, World

__all__ = ["moto_server"]

PAGE = "https://page.example"
WHO: dict[str, Any] = {"requested_by": "operator", "reason": "ticket 1"}


@dataclass(frozen=True)
class Mirrored:
    """A mirrored world behind a CDN that has copies of every rendition, some of them made for a page."""

    world: World
    settings: Settings
    catalog: sa.Engine
    zone: Zone
    eraser: Eraser

    @property
    def owner(self) -> str:
        return str(self.world.profile_ids[0])

    @property
    def paths(self) -> set[str]:
        """What the view shows."""
        found = view(self.catalog).values()
        return {path for row in found for path in (row["cdn_path_256"], row["cdn_path_512"]) if path}

    def paths_of(self, owner: str) -> set[str]:
        return {path for path in self.paths if path.startswith(f"/th/ig/{owner}/")}


def in_folder(url: str) -> Callable[[str], bytes | None]:
    def read(key: str) -> bytes | None:
        file = folder(url) / key
        return file.read_bytes() if file.exists() else None

    return read


def in_bucket(server: S3Server, bucket: str) -> Callable[[str], bytes | None]:
    def read(key: str) -> bytes | None:
        try:
            with urlopen(server.presigned_url(bucket, key)) as answer:
                data: bytes = answer.read()
                return data
        except HTTPError:
            return None

    return read


@contextmanager
def mirrored_world(
    world: World, settings: Settings, catalog: sa.Engine, store: Callable[[str], bytes | None]
) -> Iterator[Mirrored]:
    run(settings)
    with running_zone(store) as zone:
        eraser = replace(
            Eraser.of(settings, catalog), cdn_base_url=zone.base_url, purge=zone.client, patience_seconds=0.0
        )
        mirrored = Mirrored(world, settings, catalog, zone, eraser)
        for path in mirrored.paths:
            zone.get(path, None)
            zone.get(path, PAGE)
        yield mirrored


@pytest.fixture
def mirrored(small_world: SmallWorld, settings: Settings, catalog: sa.Engine) -> Iterator[Mirrored]:
    world = small_world(profiles=2, posts=1)
    with mirrored_world(world, settings, catalog, in_folder(settings.objects_url)) as mirrored:
        yield mirrored


def assert_nothing_of(mirrored: Mirrored, owner: str) -> None:
    """Neither catalog nor stores nor CDN have anything of the owner; others have all that the view shows."""
    assert mirrored.paths_of(owner) == set()
    assert {row["owner_id"] for row in images(mirrored.catalog)} & {owner} == set()
    stored = objects_in(mirrored.settings.objects_url)
    assert {f"/{key}" for key in stored} == mirrored.paths
    originals = {row["original_sha256"] for row in images(mirrored.catalog)}
    kept = {key for key in objects_in(mirrored.settings.originals_url) if key.startswith("originals/")}
    assert kept == {original_key(sha256) for sha256 in originals}
    assert {path for path, _ in mirrored.zone.copies} == mirrored.paths


def test_an_erased_owner_is_nowhere_and_everybody_else_stays(mirrored: Mirrored) -> None:
    before, images_before = mirrored.paths, len(images(mirrored.catalog))
    gone = mirrored.paths_of(mirrored.owner)
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.problem, erasure.cdn_verified) == (ErasureState.DONE, None, True)
    assert (erasure.renditions, erasure.images) == (len(gone), images_before - len(images(mirrored.catalog)))
    assert erasure.originals > 0
    assert mirrored.paths == before - gone
    assert_nothing_of(mirrored, mirrored.owner)


def test_probes_of_erased_urls_are_erased_whatever_became_of_their_renditions(mirrored: Mirrored) -> None:
    owner = mirrored.owner
    cleaned_up, neighbour = f"/th/ig/{owner}/avatar/256/0123456789abcdef.webp", f"/th/ig/{owner}2/avatar/256/0.webp"
    with mirrored.catalog.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO cdn_delivery_probes (path) SELECT unnest(CAST(:paths AS text[]))"),
            {"paths": [*mirrored.paths, cleaned_up, neighbour]},
        )
    mirrored.eraser.erase(Target(owner), **WHO)
    left = {row["path"] for row in rows(mirrored.catalog, "SELECT path FROM cdn_delivery_probes")}
    assert left == {*mirrored.paths, neighbour}


def test_what_users_asked_for_an_erased_owner_is_forgotten(mirrored: Mirrored) -> None:
    owners = {row["owner_id"] for row in images(mirrored.catalog)}
    for owner in owners:
        with mirrored.catalog.begin() as connection:
            open_refresh(connection, INSTAGRAM, owner, Limits())
    mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    left = {row["owner_id"] for row in rows(mirrored.catalog, "SELECT owner_id FROM cdn_refreshes")}
    assert left == owners - {mirrored.owner}


def test_an_erased_owner_does_not_come_back_with_the_next_scan(mirrored: Mirrored) -> None:
    mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    with mirrored.world.engine.begin() as source:
        source.execute(sa.text("UPDATE posts SET updated_at = now()"))
    assert run(mirrored.settings).images == 0
    assert_nothing_of(mirrored, mirrored.owner)


def test_no_cached_copy_is_left_not_even_those_that_were_made_for_a_page(mirrored: Mirrored) -> None:
    [path, *_] = mirrored.paths_of(mirrored.owner)
    for headers in ({}, {"Origin": PAGE}):
        assert httpx.get(f"{mirrored.zone.base_url}{path}", headers=headers).status_code == 200
    mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    for headers in ({}, {"Origin": PAGE}):
        assert httpx.get(f"{mirrored.zone.base_url}{path}", headers=headers).status_code == 404


def test_one_picture_is_erased_and_the_owners_others_stay(mirrored: Mirrored) -> None:
    [post, *_] = [row for row in images(mirrored.catalog) if row["source_type"] == "post_thumbnail"]
    before = mirrored.paths
    gone = {path for path in before if path.startswith(f"/th/ig/{post['owner_id']}/{post['media_id']}/")}
    target = Target(post["owner_id"], (post["id"],))
    with mirrored.catalog.connect() as connection:
        plan = plan_erasure(connection, INSTAGRAM, target)
    assert (plan.images, set(plan.paths), plan.originals) == (1, gone, (post["original_sha256"],))
    erasure = mirrored.eraser.erase(target, **WHO)
    assert (erasure.state, erasure.images, erasure.renditions) == (ErasureState.DONE, 1, 2)
    assert mirrored.paths == before - gone
    run(mirrored.settings)
    assert mirrored.paths == before - gone
    with mirrored.catalog.connect() as connection:
        for subject in (str(post["id"]), *gone, f"https://elsewhere{min(gone)}", post["source_url"]):
            assert [each.erasure_id for each in erasures_of(connection, INSTAGRAM, subject)] == [erasure.id]


def test_an_original_that_another_owner_has_too_stays(mirrored: Mirrored) -> None:
    mine, yours = (
        next(row for row in images(mirrored.catalog) if row["owner_id"] == owner) for owner in owners(mirrored)
    )
    with mirrored.catalog.begin() as connection:
        share = "UPDATE cdn_image_assets SET original_sha256 = :sha256 WHERE id = :id"
        connection.execute(sa.text(share), {"sha256": mine["original_sha256"], "id": yours["id"]})
        plan = plan_erasure(connection, INSTAGRAM, Target(mirrored.owner))
    assert plan.shared == (mine["original_sha256"],)
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.kept) == (ErasureState.DONE, 1)
    assert original_key(mine["original_sha256"]) in objects_in(mirrored.settings.originals_url)


def owners(mirrored: Mirrored) -> list[str]:
    return [str(profile_id) for profile_id in mirrored.world.profile_ids]


# -- what does not go well --


def test_without_a_token_the_purge_is_pending_and_later_it_is_made_up_for(mirrored: Mirrored) -> None:
    erasure = replace(mirrored.eraser, purge=None).erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.cdn_verified) == (ErasureState.PURGE_PENDING, False)
    assert "CF_API_TOKEN" in (erasure.problem or "")
    assert mirrored.paths_of(mirrored.owner) == set()
    erasure = mirrored.eraser.erase(Target(mirrored.owner), requested_by="another", reason="")
    assert (erasure.state, erasure.cdn_verified) == (ErasureState.DONE, True)
    assert (erasure.requested_by, erasure.problem) == ("operator", None)
    assert_nothing_of(mirrored, mirrored.owner)


def test_when_cloudflare_refuses_the_purge_is_pending_with_its_words(mirrored: Mirrored) -> None:
    mirrored.zone.answers.append((403, {}, {"success": False, "errors": [{"code": 9109, "message": "no access"}]}))
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, "no access (9109)" in (erasure.problem or "")) == (ErasureState.PURGE_PENDING, True)


def test_a_cdn_that_cannot_be_asked_leaves_it_unverified_and_done(mirrored: Mirrored) -> None:
    nobody = replace(mirrored.eraser, cdn_base_url="http://127.0.0.1:9")
    erasure = nobody.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.cdn_verified) == (ErasureState.DONE, None)


def test_a_cdn_that_still_serves_it_is_no_success(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdn_pipeline.upkeep.erase._LOOKS_AT_CDN", 2)
    mirrored.zone.answers.append((200, {}, {"success": True}))  # and purges nothing
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.cdn_verified) == (ErasureState.OPEN, False)
    assert "still serves" in (erasure.problem or "")
    assert mirrored.eraser.go_on(erasure.id).state is ErasureState.DONE


class _FailsAt:
    """A store whose `n`th deletion fails, as it does when the network goes."""

    def __init__(self, store: ObjectStore, n: int, error: type[BaseException]) -> None:
        self._store = store
        self._left = n
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def delete(self, key: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error("the store is gone")
        await self._store.delete(key)


def failing(store: ObjectStore, n: int, error: type[BaseException]) -> ObjectStore:
    flaky: Any = _FailsAt(store, n, error)
    return flaky  # type: ignore[no-any-return]


@pytest.mark.parametrize("n", [1, 3])
def test_a_store_that_fails_leaves_the_erasure_open_and_it_goes_on_later(mirrored: Mirrored, n: int) -> None:
    stores = replace(mirrored.eraser.stores, renditions=failing(mirrored.eraser.stores.renditions, n, StoreUnavailable))
    erasure = replace(mirrored.eraser, stores=stores).erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.problem) == (ErasureState.OPEN, "the store is gone")
    assert mirrored.paths_of(mirrored.owner) == set()
    assert mirrored.eraser.go_on(erasure.id).state is ErasureState.DONE
    assert_nothing_of(mirrored, mirrored.owner)


@pytest.mark.parametrize(
    "step",
    [
        "erase.store_copies",
        "erase.erasures.take_down",
        "erase.mark_unreferenced",
        "removal.note_removed",
        "erase.erasures.close_erasure",
    ],
)
def test_an_erasure_that_was_killed_before_a_step_is_visible_and_goes_on(
    mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"cdn_pipeline.upkeep.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    with mirrored.catalog.connect() as connection:
        [unfinished] = list_erasures(connection, INSTAGRAM, unfinished=True)
    erasure = mirrored.eraser.go_on(unfinished.id)
    assert (erasure.state, erasure.cdn_verified) == (ErasureState.DONE, True)
    assert_nothing_of(mirrored, mirrored.owner)


def test_what_nobody_expected_is_noted_as_the_erasures_problem(
    mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr("cdn_pipeline.upkeep.erase.store_copies", fail)
        erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert (erasure.state, erasure.problem) == (ErasureState.OPEN, "KeyError: 'a defect'")
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert mirrored.eraser.go_on(erasure.id).state is ErasureState.DONE


def clean(mirrored: Mirrored, *, dry_run: bool = False) -> int:
    """How many erasures a clean-up goes on with."""
    eraser = mirrored.eraser
    clean_up = CleanUp(mirrored.catalog, INSTAGRAM, eraser.stores, timedelta(days=30), dry_run=dry_run, eraser=eraser)
    (gone_on_with,) = [cleaned.count for cleaned in clean_up.run() if cleaned.kind is Kind.ERASURES]
    return gone_on_with


def leave_alone(mirrored: Mirrored, for_how_long: timedelta) -> None:
    with mirrored.catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_erasures SET updated_at = now() - :ago"), {"ago": for_how_long})


def test_the_clean_up_goes_on_with_an_erasure_whose_process_died_and_not_with_one_that_goes_on(
    mirrored: Mirrored,
) -> None:
    erasure_id = mirrored.eraser.begin(Target(mirrored.owner), **WHO)
    leave_alone(mirrored, INTERRUPTED_AFTER / 2)
    assert clean(mirrored) == 0
    leave_alone(mirrored, INTERRUPTED_AFTER)
    assert clean(mirrored, dry_run=True) == 1
    assert mirrored.paths_of(mirrored.owner)
    assert clean(mirrored) == 1
    with mirrored.catalog.connect() as connection:
        assert read_erasure(connection, erasure_id).state is ErasureState.DONE
    assert_nothing_of(mirrored, mirrored.owner)
    leave_alone(mirrored, INTERRUPTED_AFTER)
    assert clean(mirrored) == 0


def test_the_clean_up_purges_again_only_if_it_can(mirrored: Mirrored) -> None:
    without = replace(mirrored.eraser, purge=None)
    assert without.erase(Target(mirrored.owner), **WHO).state is ErasureState.PURGE_PENDING
    leave_alone(mirrored, INTERRUPTED_AFTER)
    assert without.interrupted(limit=10) == []
    assert clean(mirrored) == 1


# -- runs that have an image in hand --


def put(mirrored: Mirrored, references: Mapping[str, bytes]) -> None:
    async def put_all() -> None:
        for reference_, data in references.items():
            is_path = reference_.startswith("/")
            store = mirrored.eraser.stores.renditions if is_path else mirrored.eraser.stores.originals
            key = reference_.removeprefix("/") if is_path else original_key(reference_)
            await store.put_new(key, data, content_type="image/webp")

    asyncio.run(put_all())


def test_an_erasure_waits_for_runs_and_takes_what_they_stored_meanwhile(mirrored: Mirrored) -> None:
    with session(mirrored.catalog) as connection:
        register(connection, RUN)
        see(connection, reference(source_url(picture="late"), image="late", owner=mirrored.owner))
        job = take_one(connection)
        end = published(job, "late", "e" * 64)
        path = f"/th/ig/{mirrored.owner}/avatar/256/{'0' * 16}.webp"
        end = replace(end, renditions=(replace(end.renditions[0], path=path),))
        erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
        assert (erasure.state, "in hand" in (erasure.problem or "")) == (ErasureState.OPEN, True)
        put(mirrored, {path: b"late", "e" * 64: b"late"})
        assert settle(connection, RUN, [end]) == set()
        assert mirrored.eraser.go_on(erasure.id).state is ErasureState.DONE
    assert_nothing_of(mirrored, mirrored.owner)


def test_what_a_killed_run_has_left_under_the_owners_keys_goes_too(mirrored: Mirrored) -> None:
    put(mirrored, {f"/th/ig/{mirrored.owner}/unknown/256/{'0' * 16}.webp": b"left"})
    assert mirrored.eraser.erase(Target(mirrored.owner), **WHO).state is ErasureState.DONE
    assert_nothing_of(mirrored, mirrored.owner)


# -- tombstones --


def test_tombstones_survive_the_catalog_in_the_store_of_originals(mirrored: Mirrored) -> None:
    mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    stored = {key: data for key, data in objects_in(mirrored.settings.originals_url).items() if "tombstones/" in key}
    assert len(stored) == 1
    assert b"http" not in b"".join(stored.values())
    with mirrored.catalog.begin() as connection:
        connection.execute(sa.text("DELETE FROM cdn_tombstones"))
        connection.execute(sa.text("DELETE FROM cdn_erasures"))
    assert bring_all_back(mirrored.catalog, read_copies(mirrored.eraser.stores.originals)) == 1
    assert bring_all_back(mirrored.catalog, read_copies(mirrored.eraser.stores.originals)) == 0
    run(mirrored.settings)
    assert_nothing_of(mirrored, mirrored.owner)
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)  # the audit begins anew, with the same tombstone
    assert (erasure.state, len(rows(mirrored.catalog, "SELECT * FROM cdn_tombstones"))) == (ErasureState.DONE, 1)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"id": "x"}', b"\xff"])
def test_a_damaged_tombstone_stops_the_restoration(settings: Settings, data: bytes) -> None:
    originals = open_store(settings, settings.originals_url)
    asyncio.run(originals.put_new("tombstones/1.json", data, content_type="application/json"))
    with pytest.raises(ValueError, match=r"tombstones/1\.json is no tombstone"):
        read_copies(originals)


def test_a_lifted_erasure_lets_the_owner_in_again(mirrored: Mirrored) -> None:
    before = mirrored.paths
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    assert mirrored.eraser.lift(erasure.id) == 1
    assert not any("tombstones/" in key for key in objects_in(mirrored.settings.originals_url))
    with mirrored.catalog.connect() as connection:
        assert [each.state for each in list_erasures(connection, INSTAGRAM)] == [ErasureState.LIFTED]
    run(mirrored.settings)
    assert mirrored.paths == before


def test_an_erasure_that_is_not_finished_cannot_be_lifted(mirrored: Mirrored) -> None:
    stores = replace(mirrored.eraser.stores, renditions=failing(mirrored.eraser.stores.renditions, 1, StoreUnavailable))
    erasure = replace(mirrored.eraser, stores=stores).erase(Target(mirrored.owner), **WHO)
    with pytest.raises(LiftRefusedError, match="--resume"):
        mirrored.eraser.lift(erasure.id)


def test_an_erasure_that_a_run_came_back_with_more_of_cannot_be_lifted(mirrored: Mirrored) -> None:
    erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
    with mirrored.catalog.begin() as connection:
        list_objects(connection, erasure.id, ["/late"])
    with pytest.raises(LiftRefusedError, match="--resume"):
        mirrored.eraser.lift(erasure.id)
    assert len(rows(mirrored.catalog, "SELECT * FROM cdn_tombstones")) == 1
    assert any("tombstones/" in key for key in objects_in(mirrored.settings.originals_url))


def test_pictures_that_nobody_can_tell_apart_are_not_taken_for_the_same(mirrored: Mirrored) -> None:
    """As of objects of the first version, after the catalog was lost."""
    with mirrored.catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET identity = '', original_identity = ''"))
    [avatar] = [
        row
        for row in images(mirrored.catalog)
        if (row["source_type"], row["owner_id"]) == ("profile_avatar", mirrored.owner)
    ]
    others = mirrored.paths_of(mirrored.owner) - {
        path for path in mirrored.paths_of(mirrored.owner) if "/avatar/" in path
    }
    assert others
    assert mirrored.eraser.erase(Target(mirrored.owner, (avatar["id"],)), **WHO).images == 1
    assert mirrored.paths_of(mirrored.owner) == others
    other = Candidate(mirrored.owner, ImageKey("post_thumbnail", "new", "new"), (UNKNOWN_IDENTITY,))
    with mirrored.catalog.connect() as connection:
        assert kept_out(connection, INSTAGRAM, [other]) == set()


@pytest.mark.parametrize("owner", ["", " ", "..", "a/b", "é", "x" * 101])
def test_an_owner_that_there_cannot_be_is_refused(owner: str) -> None:
    with pytest.raises(ValueError, match="not a key component"):
        Target(owner)


def test_profiles_that_turned_private_are_kept_unless_the_settings_say_otherwise(mirrored: Mirrored) -> None:
    before = mirrored.paths
    assert expire_private_profiles(mirrored.eraser, mirrored.settings, [mirrored.owner]) == []
    assert mirrored.paths == before
    expiring = mirrored.settings.model_copy(update={"private_profiles": "expire"})
    [erasure] = expire_private_profiles(mirrored.eraser, expiring, [mirrored.owner])
    assert (erasure.state, erasure.requested_by) == (ErasureState.DONE, "policy")
    assert_nothing_of(mirrored, mirrored.owner)
    assert mirrored.eraser.lift(erasure.id) == 1


# -- S3 --


def test_an_owner_is_erased_from_buckets(
    small_world: SmallWorld,
    settings: Settings,
    catalog: sa.Engine,
    moto_server: S3Server,
) -> None:
    public, private = moto_server.new_bucket(), moto_server.new_bucket()
    values = settings.model_dump(exclude_unset=True) | {
        "object_store_url": f"s3://{public}",
        "originals_store_url": f"s3://{private}",
        "r2_endpoint_url": moto_server.endpoint_url,
        "r2_access_key_id": moto_server.access_key_id,
        "r2_secret_access_key": moto_server.secret_access_key,
    }
    remote = Settings(_env_file=None, **values)  # type: ignore[call-arg]
    world = small_world(profiles=2, posts=0)
    with mirrored_world(world, remote, catalog, in_bucket(moto_server, public)) as mirrored:
        erasure = mirrored.eraser.erase(Target(mirrored.owner), **WHO)
        assert (erasure.state, erasure.problem, erasure.cdn_verified) == (ErasureState.DONE, None, True)
        assert keys(mirrored.eraser.stores.renditions) == {path.removeprefix("/") for path in mirrored.paths}
        originals = {original_key(row["original_sha256"]) for row in images(catalog)}
        stored = keys(mirrored.eraser.stores.originals)
        assert {key for key in stored if not key.startswith("tombstones/")} == originals
        assert len(stored) == len(originals) + 1


def keys(store: ObjectStore) -> set[str]:
    async def listed() -> set[str]:
        return {key async for key in store.list()}

    return asyncio.run(listed())
