import asyncio
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.media.recipes import AVIF_THUMBNAILS
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import CACHE_CONTROL, cache_control
from cdn_pipeline.upkeep import verify as verify_module
from cdn_pipeline.upkeep.stores import Part, Stores
from cdn_pipeline.upkeep.verify import Problem, Verification, Verified, WrongStoreError
from cdn_pipeline_tests.engine.runs import folder, run
from cdn_pipeline_tests.queue.catalogs import open_jobs, refuse_illegal_transitions, session
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror, original_of, put, renditions_of, sha256
from cdn_pipeline_tests.world import SmallWorld

__all__ = ["moto_server"]

IMAGES = 5


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    refuse_illegal_transitions(catalog)
    with session(catalog) as connection:
        yield connection


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return folder_stores(tmp_path)


@pytest.fixture
def content(connection: sa.Connection, stores: Stores) -> str:
    """What the only image shows."""
    mirror(connection, stores, "x")
    return "x"


def verify(catalog: sa.Engine, stores: Stores, **options: Any) -> dict[Part, Verified]:
    return {each.part: each for each in Verification(catalog, INSTAGRAM, stores.by_part, **options).run()}


def problems(catalog: sa.Engine, stores: Stores, **options: Any) -> Counter[Problem]:
    """Of both parts together."""
    return sum((each.problems for each in verify(catalog, stores, **options).values()), Counter[Problem]())


def rendition_key(content: str) -> str:
    return renditions_of("avatar", content)[0][0].path.removeprefix("/")


def replace_object(
    stores: Stores,
    key: str,
    data: bytes,
    content_type: str = "image/webp",
    cache_control: str | None = CACHE_CONTROL,
) -> None:
    """What lies under a key becomes something else."""
    store = stores.originals if key.startswith("originals") else stores.renditions

    async def replace() -> None:
        await store.delete(key)
        await store.put_new(key, data, content_type=content_type, cache_control=cache_control)

    asyncio.run(replace())


# -- what is found --


def test_stores_that_hold_what_the_catalog_says_pass(catalog: sa.Engine, content: str, stores: Stores) -> None:
    for options in ({}, {"read": True}, {"sample": 10, "read": True}):
        found = verify(catalog, stores, **options)
        assert {part: (each.looked_at, each.wrong) for part, each in found.items()} == {
            Part.RENDITIONS: (2, 0),
            Part.ORIGINALS: (1, 0),
        }


def test_missing_objects_are_found(catalog: sa.Engine, content: str, stores: Stores) -> None:
    asyncio.run(stores.renditions.delete(rendition_key(content)))
    asyncio.run(stores.originals.delete(original_key(sha256(original_of(content)))))
    found = verify(catalog, stores)
    assert {part: each.problems for part, each in found.items()} == {part: {Problem.MISSING: 1} for part in Part}
    assert [finding.reference for finding in found[Part.RENDITIONS].samples] == [f"/{rendition_key(content)}"]


def test_objects_of_another_size_are_found_by_asking_and_of_other_bytes_by_reading(
    catalog: sa.Engine, content: str, stores: Stores
) -> None:
    key = rendition_key(content)
    replace_object(stores, key, b"another size")
    assert problems(catalog, stores) == {Problem.SIZE: 1}
    replace_object(stores, key, bytes(len(renditions_of("avatar", content)[0][1])))
    assert problems(catalog, stores) == {}
    assert problems(catalog, stores, read=True) == {Problem.BYTES: 1}


def test_another_content_type_is_told_and_not_repaired(catalog: sa.Engine, content: str, stores: Stores) -> None:
    replace_object(stores, rendition_key(content), renditions_of("avatar", content)[0][1], "text/html")
    found = verify(catalog, stores, repair=True)[Part.RENDITIONS]
    assert (found.problems, found.repaired) == ({Problem.HEADERS: 1}, 0)


@pytest.mark.parametrize("header", [None, "public", "public, max-age=60, s-maxage=31536000, immutable"])
def test_a_cache_control_that_is_none_of_ours_is_told(
    catalog: sa.Engine, content: str, stores: Stores, header: str | None
) -> None:
    data = renditions_of("avatar", content)[0][1]
    replace_object(stores, rendition_key(content), data, cache_control=header)
    assert problems(catalog, stores) == {Problem.HEADERS: 1}


def test_a_cache_control_of_other_settings_is_ours(catalog: sa.Engine, content: str, stores: Stores) -> None:
    for days in (7, 365):
        data = renditions_of("avatar", content)[0][1]
        replace_object(stores, rendition_key(content), data, cache_control=cache_control(days))
        assert problems(catalog, stores) == {}


def test_a_store_that_lost_most_is_not_repaired_unless_that_is_wanted(
    catalog: sa.Engine, content: str, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "FEW", 1)
    for rendition, _ in renditions_of("avatar", content):
        asyncio.run(stores.renditions.delete(rendition.path.removeprefix("/")))
    with pytest.raises(WrongStoreError, match="has lost 2 of 2 current renditions"):
        verify(catalog, stores, repair=True)
    with session(catalog) as connection:
        assert open_jobs(connection) == []
    assert verify(catalog, stores)[Part.RENDITIONS].wrong == 2
    assert verify(catalog, stores, repair=True, force=True)[Part.RENDITIONS].repaired == 2


def test_what_is_superseded_is_not_looked_at(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x", "y")
    asyncio.run(stores.renditions.delete(rendition_key("x")))
    assert problems(catalog, stores) == {}


def test_a_sample_is_of_different_objects_and_no_larger_than_asked_for(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "BATCH", 2)
    for image in range(IMAGES):
        mirror(connection, stores, f"x{image}", image=str(image))
    assert verify(catalog, stores)[Part.RENDITIONS].looked_at == 2 * IMAGES
    asked, seen = 3, set[uuid.UUID]()
    for _ in range(30):
        verification = Verification(catalog, INSTAGRAM, stores.by_part, sample=asked)
        batches = [row for batch in verification._batches(Part.ORIGINALS) for row in batch]
        assert len({row["id"] for row in batches}) == asked
        seen |= {row["id"] for row in batches}
    assert len(seen) > asked


def test_no_more_findings_are_named_than_a_person_reads(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "MAX_SAMPLES", 3)
    for image in range(IMAGES):
        mirror(connection, stores, f"x{image}", image=str(image))
    empty = folder_stores(Path(stores.renditions.url.removeprefix("file://")) / "elsewhere")
    found = verify(catalog, empty)[Part.RENDITIONS]
    assert (found.wrong, len(found.samples)) == (2 * IMAGES, 3)


def test_an_image_that_was_replaced_meanwhile_is_no_finding(
    catalog: sa.Engine, content: str, connection: sa.Connection, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = verify_module._findings

    async def replaced_meanwhile(*arguments: Any, **options: Any) -> Any:
        connection.execute(sa.text("UPDATE cdn_image_renditions SET state = 'superseded', superseded_at = now()"))
        return await look(*arguments, **options)

    asyncio.run(stores.renditions.delete(rendition_key(content)))
    monkeypatch.setattr(verify_module, "_findings", replaced_meanwhile)
    assert problems(catalog, stores) == {}


def test_objects_that_the_catalog_does_not_know_are_counted(
    catalog: sa.Engine, content: str, stores: Stores, tmp_path: Path
) -> None:
    put(stores, "avatar", "unknown")
    unknown = Verification(catalog, INSTAGRAM, stores.by_part).unknown()
    assert {part: (each.known, each.unknown_count) for part, each in unknown.items()} == {
        Part.RENDITIONS: (2, 2),
        Part.ORIGINALS: (1, 1),
    }


def test_on_s3_too(catalog: sa.Engine, connection: sa.Connection, moto_server: S3Server) -> None:
    stores = Stores(*(moto_server.store(f"s3://{moto_server.new_bucket()}") for _ in range(2)))
    mirror(connection, stores, "x")
    put(stores, "avatar", "unknown")
    assert problems(catalog, stores, read=True) == {}
    assert Verification(catalog, INSTAGRAM, stores.by_part).unknown()[Part.RENDITIONS].unknown_count == 2
    replace_object(stores, rendition_key("x"), renditions_of("avatar", "x")[0][1], "text/html")
    asyncio.run(stores.originals.delete(original_key(sha256(original_of("x")))))
    assert problems(catalog, stores) == {Problem.HEADERS: 1, Problem.MISSING: 1}


# -- repairs --


def test_without_repair_no_job_is_opened(
    catalog: sa.Engine, content: str, connection: sa.Connection, stores: Stores
) -> None:
    asyncio.run(stores.renditions.delete(rendition_key(content)))
    assert verify(catalog, stores)[Part.RENDITIONS].repaired == 0
    assert open_jobs(connection) == []


def test_a_lost_rendition_is_encoded_again(
    catalog: sa.Engine, content: str, connection: sa.Connection, stores: Stores
) -> None:
    asyncio.run(stores.renditions.delete(rendition_key(content)))
    assert verify(catalog, stores, repair=True)[Part.RENDITIONS].repaired == 1
    [job] = open_jobs(connection)
    assert (job["stage"], job["force"], job["rollout"], job["priority"]) == (Stage.ENCODE, True, None, 2)


@pytest.mark.parametrize(("lives", "repaired"), [(timedelta(days=1), 1), (None, 1), (timedelta(days=-1), 0)])
def test_a_lost_original_is_downloaded_again_only_from_a_url_that_lives(
    catalog: sa.Engine,
    content: str,
    connection: sa.Connection,
    stores: Stores,
    lives: timedelta | None,
    repaired: int,
) -> None:
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() + :lives"), {"lives": lives})
    asyncio.run(stores.originals.delete(original_key(sha256(original_of(content)))))
    found = verify(catalog, stores, repair=True)[Part.ORIGINALS]
    assert (found.repaired, len(found.samples)) == (repaired, 1 - repaired)
    assert [(job["stage"], job["force"]) for job in open_jobs(connection)] == [(Stage.DOWNLOAD, True)] * repaired


def test_a_rendition_of_a_rollout_is_made_again_by_its_recipe(
    catalog: sa.Engine, content: str, connection: sa.Connection, stores: Stores
) -> None:
    connection.execute(
        sa.text("UPDATE cdn_image_renditions SET recipe = :recipe WHERE size_name = '256'"),
        {"recipe": AVIF_THUMBNAILS.name},
    )
    asyncio.run(stores.renditions.delete(rendition_key(content)))
    assert verify(catalog, stores, repair=True)[Part.RENDITIONS].repaired == 1
    assert [job["rollout"] for job in open_jobs(connection)] == [AVIF_THUMBNAILS.name]


def test_an_image_that_has_an_open_job_is_left_to_it(
    catalog: sa.Engine, content: str, connection: sa.Connection, stores: Stores
) -> None:
    asyncio.run(stores.renditions.delete(rendition_key(content)))
    for _ in range(2):
        found = verify(catalog, stores, repair=True)[Part.RENDITIONS]
    assert (found.wrong, found.repaired) == (1, 0)
    assert len(open_jobs(connection)) == 1


@pytest.mark.parametrize("damage", ["unlink", "overwrite"])
def test_what_was_lost_or_damaged_is_back_after_a_run(
    settings: Settings, catalog: sa.Engine, small_world: SmallWorld, damage: str
) -> None:
    small_world(profiles=2, posts=1)
    run(settings)
    stores = folder_stores(folder(settings.objects_url).parent)
    renditions = sorted(folder(settings.objects_url).rglob("*.webp"))
    originals = sorted(file for file in (folder(settings.originals_url) / "originals").rglob("*") if file.is_file())
    before = {file: file.read_bytes() for file in (*renditions, *originals)}
    for file in (renditions[0], originals[-1]):
        file.unlink() if damage == "unlink" else file.write_bytes(b"damaged")
    expected = Problem.MISSING if damage == "unlink" else Problem.SIZE
    assert problems(catalog, stores) == {expected: 2}
    found = verify(catalog, stores, repair=True)
    assert sum(each.repaired for each in found.values()) in (1, 2)  # one image may have lost both

    run(settings)

    assert problems(catalog, stores, read=True) == {}
    assert {file: file.read_bytes() for file in before} == before
