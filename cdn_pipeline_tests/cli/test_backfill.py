"""`backfill` opens jobs of the bulk lane for what was there before, once, and may be interrupted."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY
from cdn_pipeline.demo import app_database
from cdn_pipeline.sources.app_database import SourceBatch, read_profiles
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import open_jobs
from cdn_pipeline_tests.world import SmallWorld, World

PROFILES, POSTS = 5, 6


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    return small_world(profiles=PROFILES, posts=POSTS)


@pytest.fixture
def source(world: World) -> Iterator[sa.Connection]:
    with world.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def day(world: World, ago: int) -> str:
    return f"{world.origin.now() - timedelta(days=ago):%Y-%m-%d}"


def by_type(connection: sa.Connection) -> Counter[str]:
    return Counter(connection.scalars(sa.text("SELECT source_type FROM cdn_image_assets")))


def test_every_row_of_the_period_gets_a_job_behind_all_other_work(
    invoke: Invoke, connection: sa.Connection, world: World
) -> None:
    result = invoke("backfill", "--start-date", "2024-01-01", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    found = by_type(connection)
    assert (found["profile_avatar"], found["post_thumbnail"]) == (PROFILES, PROFILES * POSTS)
    assert {job["priority"] for job in open_jobs(connection)} == {BACKFILL_PRIORITY}
    assert f"Opened {found.total()} jobs of priority 6 for {PROFILES} profiles" in result.output
    assert "bulk lane" in result.output
    assert "dagster job execute" in result.output


def test_repeated_it_opens_nothing_more(invoke: Invoke, connection: sa.Connection, world: World) -> None:
    invoke("backfill", "--start-date", "2024-01-01")
    before = by_type(connection).total()
    result = invoke("backfill", "--start-date", "2024-01-01")
    assert "Opened 0 jobs" in result.output
    assert f"{before} are known" in result.output
    assert "dagster job execute" not in result.output


def test_posts_are_chosen_by_when_they_were_taken_and_avatars_by_their_last_update(
    invoke: Invoke, connection: sa.Connection, world: World, source: sa.Connection
) -> None:
    source.execute(sa.text("UPDATE profiles SET updated_at = updated_at - interval '90 days'"))
    invoke("backfill", "--start-date", day(world, 9), "--end-date", day(world, 2))
    wanted = sa.text("SELECT CAST(id AS text) FROM posts WHERE taken_at >= :start AND taken_at < :end")
    posts = set(source.scalars(wanted, {"start": f"{day(world, 9)}Z", "end": f"{day(world, 2)}Z"}))
    assert posts
    assert set(connection.scalars(sa.text("SELECT source_id FROM cdn_image_assets"))) == posts
    invoke("backfill", "--start-date", day(world, 100), "--end-date", day(world, 80))
    assert by_type(connection)["profile_avatar"] == PROFILES


def test_posts_beyond_the_latest_twelve_are_not_taken(
    invoke: Invoke, connection: sa.Connection, world: World, source: sa.Connection
) -> None:
    profile_id = world.profile_ids[0]
    old = world.origin.now() - timedelta(days=400)
    older = app_database.add_post(world.engine, world.origin.signer, profile_id, now=old)
    for number in range(12 - POSTS):
        app_database.add_post(
            world.engine, world.origin.signer, profile_id, now=world.origin.now() - timedelta(minutes=number)
        )
    invoke("backfill", "--start-date", day(world, 500))
    known = set(connection.scalars(sa.text("SELECT source_id FROM cdn_image_assets")))
    assert str(older) not in known
    query = sa.text("SELECT count(*) FROM posts WHERE profile_id = :id")
    assert source.execute(query, {"id": profile_id}).scalar_one() == 13


def test_open_jobs_keep_their_priority_and_fresh_urls_reopen_what_waits(
    invoke: Invoke, connection: sa.Connection, world: World, source: sa.Connection
) -> None:
    invoke("backfill", "--start-date", "2024-01-01")
    connection.execute(sa.text("UPDATE cdn_image_jobs SET priority = 2"))
    dead = "UPDATE cdn_image_jobs SET status = 'failed', completed_at = now() WHERE asset_id IN ({})"
    avatars = "SELECT id FROM cdn_image_assets WHERE source_type = 'profile_avatar'"
    connection.execute(sa.text(dead.format(avatars)))
    app_database.resign_all(world.engine, world.origin.signer, now=world.origin.now() + timedelta(hours=1))
    assert f"Opened {PROFILES} jobs" in invoke("backfill", "--start-date", "2024-01-01").output
    assert Counter(job["priority"] for job in open_jobs(connection))[BACKFILL_PRIORITY] == PROFILES


def test_a_dry_run_counts_and_changes_nothing(invoke: Invoke, connection: sa.Connection, world: World) -> None:
    result = invoke("backfill", "--start-date", "2024-01-01", "--dry-run")
    assert "Would open" in result.output
    assert "Would open 0 jobs" not in result.output
    assert by_type(connection) == Counter()


def test_interrupted_it_says_so_and_goes_on_when_it_is_run_again(
    invoke: Invoke, connection: sa.Connection, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(range(9))

    def interrupted(engine: sa.Engine, ids: Sequence[UUID]) -> SourceBatch:
        if next(batches) == 2:
            raise KeyboardInterrupt
        return read_profiles(engine, ids)

    monkeypatch.setattr("cdn_pipeline.upkeep.backfill.read_profiles", interrupted)
    result = invoke("backfill", "--start-date", "2024-01-01", "--batch-size", "2")
    assert result.exit_code == 130
    assert "goes on with what is not known yet" in result.output
    assert by_type(connection)["profile_avatar"] == 4
    invoke("backfill", "--start-date", "2024-01-01", "--batch-size", "2")
    assert by_type(connection)["profile_avatar"] == PROFILES


def test_no_watermark_moves(invoke: Invoke, connection: sa.Connection, world: World) -> None:
    invoke("backfill", "--start-date", "2024-01-01")
    assert connection.execute(sa.text("SELECT count(*) FROM cdn_source_watermarks")).scalar_one() == 0


def test_rows_that_cannot_be_used_are_told(
    invoke: Invoke, connection: sa.Connection, world: World, source: sa.Connection
) -> None:
    source.execute(sa.text("UPDATE profiles SET profile_pic_url = NULL, profile_pic_url_hd = NULL"))
    assert f"{PROFILES} rows or URLs cannot be used: no_url" in invoke("backfill", "--start-date", "2024-01-01").output


@pytest.mark.parametrize(
    "options", [(), ("--start-date", "soon"), ("--start-date", "2024-02-01", "--end-date", "2024-01-01")]
)
def test_periods_that_make_no_sense_are_refused(invoke: Invoke, options: tuple[str, ...]) -> None:
    assert invoke("backfill", *options).exit_code == 2


def test_a_database_without_the_tables_says_what_to_do(invoke: Invoke) -> None:
    result = invoke("backfill", "--start-date", "2024-01-01")
    assert result.exit_code == 2
    assert "SOURCE_DATABASE_URL" in result.output
