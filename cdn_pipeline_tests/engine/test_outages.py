"""Store or catalog away in the middle of a run: it waits, and if that lasts too long, it ends with everything due."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread, Timer
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import CatalogUnavailable, transaction
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo.faults import Fault, Misbehaviour
from cdn_pipeline.engine import outages
from cdn_pipeline.engine import stream as stream_module
from cdn_pipeline.engine.outages import Outage, StoreWatch
from cdn_pipeline.engine.tally import Tally
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.leases import hold_run, renew_leases
from cdn_pipeline.queue.outcomes import Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.engine.runs import (
    assert_nothing_in_hand,
    folder,
    images,
    jobs,
    open_mirror,
    renditions,
    reports,
    run,
    view,
)
from cdn_pipeline_tests.postgres import connect
from cdn_pipeline_tests.world import SmallWorld


def lose(store: Path) -> None:
    """Puts a file where the store's folder was: nothing can be read or written."""
    store.rename(store.with_name("away"))
    store.touch()


def bring_back(store: Path) -> None:
    store.unlink()
    store.with_name("away").rename(store)


@pytest.fixture
def objects(settings: Settings) -> Path:
    return folder(settings.objects_url)


# -- the store --


def test_a_run_waits_for_a_store_that_is_away_for_seconds(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, objects: Path
) -> None:
    small_world(profiles=2, posts=3)

    def away_for_two_seconds(_: object) -> None:
        lose(objects)
        Timer(2, bring_back, [objects]).start()

    tally = run(settings, prepare=away_for_two_seconds)
    assert tally.published == tally.images == len(view(catalog)) > 4
    assert tally.attempts_failed["store_unavailable"] >= 1  # type: ignore[index]
    assert {job["retry_count"] for job in jobs(catalog)} == {0}
    assert_nothing_in_hand(catalog)


def test_a_store_that_stays_away_ends_the_run_and_leaves_everything_due_and_untouched(
    small_world: SmallWorld,
    settings: Settings,
    catalog: sa.Engine,
    objects: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_world(profiles=2, posts=3)
    monkeypatch.setattr(stream_module, "StoreWatch", partial(StoreWatch, patience_seconds=2.0))
    with pytest.raises(Outage, match=r"store_unavailable: .*Bring the object store back"):
        run(settings, prepare=lambda _: lose(objects))
    assert_nothing_in_hand(catalog)
    assert Counter((job["status"], job["retry_count"]) for job in jobs(catalog)) == {
        ("queued", 0): len(images(catalog))
    }
    bring_back(objects)
    assert run(settings).published == len(images(catalog))


def test_one_key_that_cannot_be_written_does_not_keep_the_others(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, objects: Path
) -> None:
    world = small_world(profiles=2, posts=3)
    blocked = objects / "th" / "ig" / str(world.profile_ids[0])
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    tally = run(settings)
    assert tally.published == len(view(catalog)) >= 3
    assert +tally.failures == {"upload_failed": tally.images - tally.published}
    assert {row["owner_id"] for row in view(catalog).values()} == {str(world.profile_ids[1])}


def test_a_key_that_the_store_refuses_is_its_images_own_trouble_even_where_nothing_else_is_to_be_stored(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = small_world(profiles=1, posts=0)
    blocked = objects / "th" / "ig" / str(world.profile_ids[0])
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    monkeypatch.setattr(stream_module, "StoreWatch", partial(StoreWatch, patience_seconds=0.0))
    assert +run(settings).failures == {"upload_failed": 1}


def ended(**how: Any) -> Outcome:
    told = {"verdict": Verdict.RETRYING, "failure": FailureKind.SOURCE_ERROR, **how}
    return Outcome(uuid4(), uuid4(), "00", stage=Stage.DOWNLOAD, identity="file:A", source_url="https://a/", **told)


AWAY = {"verdict": Verdict.RELEASED, "failure": FailureKind.STORE_UNAVAILABLE}
ORIGINAL = StoredOriginal("A", "file:A", 1, 10, "jpeg", None, None, None)


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> StoreWatch:
    """Away, and the pause is over."""
    monkeypatch.setattr(outages, "_FIRST_PAUSE_SECONDS", 0.0)
    watch = StoreWatch(_pause_seconds=0.0)
    watch.note(ended(**AWAY))
    assert watch.places(64) == 1
    return watch


@pytest.mark.parametrize(
    "stored",
    [
        {"verdict": Verdict.PUBLISHED, "failure": None},
        {"verdict": Verdict.UNCHANGED, "failure": None, "original": ORIGINAL},
        {"verdict": Verdict.FAILED, "failure": FailureKind.IMAGE_CORRUPT, "original": ORIGINAL},
    ],
)
def test_whatever_is_stored_ends_the_wait_for_the_store(stores: StoreWatch, stored: dict[str, Any]) -> None:
    stores.note(ended(**stored))
    assert stores.places(64) == 64


def test_images_that_need_no_store_do_not_crawl_while_it_is_away(stores: StoreWatch) -> None:
    for _ in range(100):
        stores.note(ended(verdict=Verdict.UNCHANGED, failure=None))  # not modified, says its source
    assert stores.places(64) == 64
    stores.note(ended(**AWAY, original=ORIGINAL))  # the other store took it
    assert stores.places(64) == 1


# -- the catalog --


@contextmanager
def closed(server: EmbeddedPostgres, catalog: sa.Engine) -> Iterator[None]:
    """Cuts every connection to the catalog, and lets nobody in while the block lasts."""
    name = catalog.url.database
    assert name
    with connect(server.url("postgres")) as connection:
        _allow(connection, name, "false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            _allow(connection, name, "true")


def _allow(connection: psycopg.Connection, name: str, allowed: str) -> None:
    statement = "ALTER DATABASE {} ALLOW_CONNECTIONS {}"
    connection.execute(sql.SQL(statement).format(sql.Identifier(name), sql.SQL(allowed)))


def test_a_run_outlives_a_catalog_that_is_away_for_seconds(
    small_world: SmallWorld,
    settings: Settings,
    catalog: sa.Engine,
    postgres_server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = small_world(profiles=4, posts=3)
    world.origin.misbehaviour = Misbehaviour({Fault.SLOW: 1.0})  # by half a second: all are in hand when it begins
    monkeypatch.setattr(stream_module, "RENEW_EVERY", timedelta(seconds=0.2))
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
        away = Thread(target=_close_for_a_while, args=[postgres_server, catalog])
        away.start()
        tally = Tally.total([report.tally for report in reports(mirror)])
        away.join()
    assert tally.images > 0
    assert len(view(catalog)) == len(images(catalog))
    assert {row["state"] for row in renditions(catalog)} == {"current"}
    assert_nothing_in_hand(catalog)


def _close_for_a_while(server: EmbeddedPostgres, catalog: sa.Engine) -> None:
    time.sleep(0.3)
    with closed(server, catalog):
        time.sleep(2)


def test_a_catalog_that_stays_away_ends_the_run_and_the_next_one_does_the_rest(
    small_world: SmallWorld,
    settings: Settings,
    catalog: sa.Engine,
    postgres_server: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_world(profiles=4, posts=3)
    monkeypatch.setattr(stream_module, "CATALOG_PATIENCE", timedelta(seconds=1))
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
        with (
            closed(postgres_server, catalog),
            pytest.raises(Outage, match=r"catalog_unavailable: .*Bring the catalog's Postgres back"),
        ):
            list(reports(mirror))
    run(settings)
    assert len(view(catalog)) == len(images(catalog))
    assert_nothing_in_hand(catalog)


def test_only_a_catalog_that_is_away_is_waited_for(catalog: sa.Engine, postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(sa.exc.ProgrammingError):
        transaction(catalog, lambda connection: connection.execute(sa.text("SELEKT")), patience=timedelta(seconds=60))
    with closed(postgres_server, catalog), pytest.raises(CatalogUnavailable):
        transaction(catalog, lambda connection: connection.execute(sa.text("SELECT 1")), patience=timedelta(seconds=1))


def test_a_run_that_takes_its_lock_again_lets_go_of_jobs_it_does_not_know_of(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    small_world(profiles=1, posts=2)
    with open_mirror(settings) as mirror:
        list(mirror.discover(SHARDS))
    with hold_run(catalog, "a run") as held, catalog.connect() as connection:
        assert held.lock
        connection.execute(
            sa.text(
                "UPDATE cdn_image_jobs SET status = 'processing', run_id = 'a run', started_at = now(), "
                "lease_until = now() + interval '1 minute'"
            )
        )
        connection.execute(sa.text("UPDATE cdn_image_assets SET processing_status = 'downloading'"))
        connection.commit()
        known = jobs(catalog)[0]["id"]
        held.lock.regain({known})
        assert renew_leases(connection, held) == 1  # raises unless the lock is held
        assert {job["id"] for job in jobs(catalog) if job["status"] == "processing"} == {known}
        assert {job["status"] for job in jobs(catalog) if job["id"] != known} == {"queued"}
