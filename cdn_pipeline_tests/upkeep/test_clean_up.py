import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.references import mark_unreferenced
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.upkeep import clean_up as clean_up_module
from cdn_pipeline.upkeep.clean_up import CleanUp, Kind, WrongCatalogError
from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, reference, see, session, source_url, take
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror, objects, original_of, put, renditions_of, sha256

GRACE = timedelta(days=30)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return folder_stores(tmp_path)


def clean(catalog: sa.Engine, stores: Stores, **options: Any) -> dict[Kind, int]:
    """What a run takes, by kind, without kinds that there is nothing of."""
    options = {"dry_run": False, **options}
    counts = {cleaned.kind: cleaned.count for cleaned in CleanUp(catalog, INSTAGRAM, stores, GRACE, **options).run()}
    return {kind: count for kind, count in counts.items() if count}


def supersede_long_ago(connection: sa.Connection, days: float = 31) -> None:
    connection.execute(
        sa.text("UPDATE cdn_image_renditions SET superseded_at = superseded_at - CAST(:ago AS interval)"),
        {"ago": timedelta(days=days)},
    )


def age_files(folder: Path, days: float) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            then = file.stat().st_mtime - days * 86400
            os.utime(file, (then, then))


def names(content: str) -> set[str]:
    """Of the files of a picture's renditions and its original."""
    renditions = {rendition.path.rpartition("/")[2] for rendition, _ in renditions_of("avatar", content)}
    return renditions | {sha256(original_of(content))}


# -- objects --


def test_superseded_renditions_go_after_the_grace_period_and_their_original_with_them(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x", "y")
    age_files(tmp_path, 40)
    supersede_long_ago(connection, 29)
    assert clean(catalog, stores) == {}
    supersede_long_ago(connection, 2)
    assert clean(catalog, stores) == {Kind.SUPERSEDED: 2, Kind.ORIGINALS: 1}
    assert set(objects(tmp_path)) == names("y")
    assert clean(catalog, stores) == {}


def test_a_superseded_rendition_that_another_image_shows_keeps_its_object(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x", "y")
    mirror(connection, stores, "x", image="2", source_type="post_thumbnail")
    age_files(tmp_path, 40)
    supersede_long_ago(connection)
    assert clean(catalog, stores) == {Kind.SUPERSEDED: 2}
    assert set(objects(tmp_path)) == names("x") | names("y")


def test_rows_that_share_a_path_do_not_end_it_early(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_up_module, "BATCH", 4)
    for image in ("1", "2", "3"):
        mirror(connection, stores, "x", "y", image=image)
    supersede_long_ago(connection)
    work = CleanUp(catalog, INSTAGRAM, stores, GRACE, dry_run=False).run()
    [*_, last] = [cleaned for cleaned in work if cleaned.kind is Kind.SUPERSEDED]
    assert (last.count, last.is_all) == (6, True)


def test_objects_that_the_catalog_does_not_know_go_after_a_week(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x")
    put(stores, "avatar", "killed")
    age_files(tmp_path, 6)
    assert clean(catalog, stores) == {}
    age_files(tmp_path, 2)
    assert clean(catalog, stores) == {Kind.RENDITIONS: 2, Kind.ORIGINALS: 1}
    assert set(objects(tmp_path)) == names("x")


def test_what_is_not_ours_stays(catalog: sa.Engine, stores: Stores, tmp_path: Path) -> None:
    for name in (
        "objects/th/other/a.webp",
        "objects/robots.txt",
        "originals/originals/notes",
        "originals/tombstones/a",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not ours")
    age_files(tmp_path, 400)
    before = objects(tmp_path)
    assert clean(catalog, stores) == {}
    assert objects(tmp_path) == before


def test_temporary_files_of_killed_processes_go_after_a_day(catalog: sa.Engine, stores: Stores, tmp_path: Path) -> None:
    for name in ("objects/th/ig/a.webp#1", "objects/.meta/th/ig/a.webp.json#12", "originals/.check/abc"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    assert clean(catalog, stores) == {}
    age_files(tmp_path, 2)
    assert clean(catalog, stores, dry_run=True) == {Kind.TEMPORARY: 3}
    assert clean(catalog, stores) == {Kind.TEMPORARY: 3}
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_the_catalog_of_another_store_removes_nothing(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x")
    age_files(tmp_path, 40)
    before = objects(tmp_path)
    connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))
    for dry_run in (True, False):
        with pytest.raises(WrongCatalogError, match="rebuild-catalog"):
            clean(catalog, stores, dry_run=dry_run)
    assert objects(tmp_path) == before
    assert clean(catalog, stores, force=True) == {Kind.RENDITIONS: 2, Kind.ORIGINALS: 1}
    assert objects(tmp_path) == []


def test_many_unknown_objects_are_more_than_a_killed_run_leaves(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(connection, stores, "x")
    for content in ("a", "b"):
        put(stores, "avatar", content)
    age_files(tmp_path, 40)
    monkeypatch.setattr(clean_up_module, "FEW", 3)
    with pytest.raises(WrongCatalogError, match=r"4 objects .* which knows 2"):
        clean(catalog, stores)


# -- bounds --


def test_a_dry_run_counts_the_same_and_changes_nothing(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x", "y")
    put(stores, "avatar", "killed")
    age_files(tmp_path, 40)
    supersede_long_ago(connection)
    before = objects(tmp_path), snapshot(connection)
    told = clean(catalog, stores, dry_run=True)
    assert (objects(tmp_path), snapshot(connection)) == before
    done = clean(catalog, stores)
    assert told == {Kind.SUPERSEDED: 2, Kind.RENDITIONS: 2, Kind.ORIGINALS: 1}
    assert done == told | {Kind.ORIGINALS: 2}  # that of the superseded renditions is known until their rows go


def snapshot(connection: sa.Connection) -> list[Any]:
    tables = ("cdn_image_assets", "cdn_image_jobs", "cdn_image_renditions", "cdn_removed_objects", "cdn_runs")
    return [connection.execute(sa.text(f"SELECT * FROM {table} ORDER BY 1")).all() for table in tables]


def test_a_run_takes_no_more_than_its_limit_and_the_next_one_goes_on(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean_up_module, "BATCH", 2)
    mirror(connection, stores, "a", "b", "c", "d", "e")
    age_files(tmp_path, 40)
    supersede_long_ago(connection)
    taken = [clean(catalog, stores, limit=3).get(Kind.SUPERSEDED, 0) for _ in range(4)]
    assert taken == [3, 3, 2, 0]
    assert set(objects(tmp_path)) == names("e")


def test_progress_tells_that_more_is_left(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    mirror(connection, stores, "x")
    for content in ("a", "b"):
        put(stores, "avatar", content)
    age_files(tmp_path, 40)
    work = CleanUp(catalog, INSTAGRAM, stores, GRACE, limit=3, dry_run=False, force=True)
    told = {cleaned.kind: (cleaned.count, cleaned.is_all) for cleaned in work.run()}
    assert told[Kind.RENDITIONS] == (3, False)
    assert told[Kind.ORIGINALS] == (2, True)


def test_what_a_killed_clean_up_has_marked_is_removed(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, tmp_path: Path
) -> None:
    put(stores, "avatar", "x")
    paths = [rendition.path for rendition, _ in renditions_of("avatar", "x")]
    with catalog.begin() as transaction:
        mark_unreferenced(transaction, paths=paths, originals=[sha256(original_of("x"))])
    assert clean(catalog, stores) == {Kind.HALF_REMOVED: 3}
    assert objects(tmp_path) == []


# -- jobs --


def fail(connection: sa.Connection, days: float, verdict: Verdict = Verdict.FAILED) -> None:
    """An image whose only job failed so long ago."""
    see(connection, reference(source_url(picture="failing"), image="9"))
    [job] = take(connection)
    settle(connection, RUN, [outcome(job, verdict, Stage.DOWNLOAD)])
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET completed_at = completed_at - CAST(:ago AS interval)"),
        {"ago": timedelta(days=days)},
    )


def test_failed_jobs_are_archived_after_a_week_and_once(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores
) -> None:
    fail(connection, 6)
    assert clean(catalog, stores) == {}
    connection.execute(sa.text("UPDATE cdn_image_jobs SET completed_at = completed_at - interval '2 days'"))
    assert clean(catalog, stores) == {Kind.FAILED_JOBS: 1}
    assert clean(catalog, stores) == {}


def test_jobs_go_after_90_days_unless_they_say_why_an_image_failed(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores
) -> None:
    mirror(connection, stores, "x")
    fail(connection, 91)
    assert clean(catalog, stores) == {Kind.FAILED_JOBS: 1, Kind.OLD_JOBS: 1}
    assert connection.scalars(sa.text("SELECT status FROM cdn_image_jobs")).all() == ["failed"]


def test_runs_go_90_days_after_their_end(catalog: sa.Engine, connection: sa.Connection, stores: Stores) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_runs (run_id, lock_key, worker_id, started_at, ended_at)
            VALUES ('old', 1, '', now() - interval '100 days', now() - interval '91 days'),
                   ('new', 2, '', now() - interval '100 days', now()),
                   ('open', 3, '', now() - interval '100 days', NULL)
        """)
    )
    assert clean(catalog, stores) == {Kind.OLD_RUNS: 1}
    assert set(connection.scalars(sa.text("SELECT run_id FROM cdn_runs"))) == {"new", "open"}


def test_delivery_probes_go_after_30_days(catalog: sa.Engine, connection: sa.Connection, stores: Stores) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_delivery_probes (path, probed_at)
            VALUES ('/old', now() - interval '31 days'), ('/new', now() - interval '29 days')
        """)
    )
    assert clean(catalog, stores) == {Kind.OLD_PROBES: 1}
    assert connection.scalars(sa.text("SELECT path FROM cdn_delivery_probes")).all() == ["/new"]


def test_users_refreshes_go_30_days_after_their_end(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores
) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_refreshes (collection, owner_id, shard, requested_at, finished_at)
            VALUES ('instagram', 'old', '00', now() - interval '32 days', now() - interval '31 days'),
                   ('instagram', 'new', '00', now() - interval '32 days', now() - interval '29 days'),
                   ('instagram', 'open', '00', now() - interval '32 days', NULL)
        """)
    )
    assert clean(catalog, stores) == {Kind.OLD_REFRESHES: 1}
    assert set(connection.scalars(sa.text("SELECT owner_id FROM cdn_refreshes"))) == {"new", "open"}


def test_dead_leases_are_released(catalog: sa.Engine, connection: sa.Connection, stores: Stores) -> None:
    see(connection, reference())
    take(connection)
    assert clean(catalog, stores) == {Kind.DEAD_LEASES: 1}
    assert connection.scalar(sa.text("SELECT status FROM cdn_image_jobs")) == "queued"


# -- marks --


@pytest.mark.parametrize(("removed", "runs_since", "kept"), [(8, 7, 0), (8, 9, 2), (6, 5, 2)])
def test_marks_go_when_no_run_can_meet_them(
    catalog: sa.Engine, connection: sa.Connection, stores: Stores, removed: int, runs_since: int, kept: int
) -> None:
    """Removed and a run begun so many days ago."""
    with catalog.begin() as transaction:
        mark_unreferenced(transaction, paths=["/a", "/b"])
    connection.execute(
        sa.text("UPDATE cdn_removed_objects SET removed_at = now() - CAST(:ago AS interval)"),
        {"ago": timedelta(days=removed)},
    )
    connection.execute(
        sa.text("INSERT INTO cdn_runs (run_id, lock_key, worker_id, started_at) VALUES ('r', 1, '', now() - :ago)"),
        {"ago": timedelta(days=runs_since)},
    )
    clean(catalog, stores)
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_removed_objects")) == kept
