import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo import app_database as demo
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.engine import discover as discover_module
from cdn_pipeline.engine.discover import Discovered, discover
from cdn_pipeline.queue.intake import known_images
from cdn_pipeline.queue.outcomes import settle
from cdn_pipeline.sources import app_database
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.discovery import Change
from cdn_pipeline_tests.queue.catalogs import RUN, open_jobs, published, session, take

NOW = datetime.now(UTC)
SIGNER = Signer("http://127.0.0.1:8100", "secret")

Populate = Callable[..., demo.Population]


@pytest.fixture
def source(empty_database: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(empty_database)
    demo.create_tables(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def populate(source: sa.Engine) -> Populate:
    def populate(**more: Any) -> demo.Population:
        asked = {"profiles": 6, "posts_per_profile": 3, "now": NOW - timedelta(hours=1), "nasty_rows": False, **more}
        return demo.populate(source, SIGNER, **asked)

    return populate


def found(source: sa.Engine, catalog: sa.Engine, shards: Any = SHARDS) -> dict[str, Discovered]:
    return {each.shard: each for each in discover(source, catalog, INSTAGRAM, shards)}


def changes(discovered: dict[str, Discovered]) -> dict[Change, int]:
    return dict(sum((each.changes for each in discovered.values()), Counter[Change]()))


def mirror_all(catalog: sa.Engine) -> int:
    """Publishes everything that is due."""
    with session(catalog) as connection:
        return len(settle(connection, RUN, [published(job, job.identity, job.identity) for job in take(connection)]))


def count(catalog: sa.Engine, table: str) -> int:
    with session(catalog) as connection:
        return len(connection.execute(sa.text(f"SELECT FROM {table}")).all())


def test_everything_is_new_once_and_then_unchanged(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate()
    images = changes(found(source, catalog))
    assert set(images) == {Change.NEW}
    assert count(catalog, "cdn_image_assets") == count(catalog, "cdn_image_jobs") == images[Change.NEW] >= 6 * 4
    assert changes(found(source, catalog)) == {Change.UNCHANGED: images[Change.NEW]}


def test_every_shard_is_reported_once_and_in_order(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    population = populate()
    reports = list(discover(source, catalog, INSTAGRAM, SHARDS))
    assert [report.shard for report in reports] == list(SHARDS)
    profiles = Counter(shard_of(profile_id) for profile_id in population.profile_ids)
    assert {report.shard: report.profiles for report in reports if report.profiles} == profiles
    assert all(report.images >= 4 * report.profiles for report in reports)


def test_a_range_of_shards_touches_nothing_else(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    population = populate(profiles=20)
    some = SHARDS[16:32]
    assert list(found(source, catalog, some)) == list(some)
    with session(catalog) as connection:
        owners = set(connection.scalars(sa.text("SELECT DISTINCT owner_id FROM cdn_image_assets")))
        shards = set(connection.scalars(sa.text("SELECT DISTINCT shard FROM cdn_image_jobs")))
    assert owners == {str(each) for each in population.profile_ids if shard_of(each) in some}
    assert shards <= set(some)


def test_a_shard_is_reported_as_soon_as_the_scan_is_past_it(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_database, "PROFILES_PER_BATCH", 2)
    populate(profiles=10)
    everything = changes(found(source, catalog))
    with session(catalog) as connection:
        connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))
    discovery = discover(source, catalog, INSTAGRAM, SHARDS)
    next(report for report in discovery if report.profiles)
    early = count(catalog, "cdn_image_assets")
    assert 0 < early < everything[Change.NEW]
    assert sum(report.images for report in discovery) > 0
    assert count(catalog, "cdn_image_assets") == everything[Change.NEW]


def test_what_is_interrupted_is_found_again(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate()
    discovery = discover(source, catalog, INSTAGRAM, SHARDS)
    next(discovery)
    discovery.close()  # type: ignore[attr-defined]
    assert sum(changes(found(source, catalog)).values()) == count(catalog, "cdn_image_assets")


def test_signing_everything_again_opens_no_job(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate()
    images = changes(found(source, catalog))[Change.NEW]
    assert mirror_all(catalog) == images
    demo.resign_all(source, SIGNER, now=NOW)
    assert changes(found(source, catalog)) == {Change.RESIGNED: images}
    with session(catalog) as connection:
        assert not open_jobs(connection)


def test_a_new_avatar_and_a_new_post_open_one_job_each(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate()
    images = changes(found(source, catalog))[Change.NEW]
    mirror_all(catalog)
    profile_id = population.profile_ids[0]
    demo.replace_avatar(source, SIGNER, profile_id, now=NOW)
    assert changes(found(source, catalog)) == {Change.CHANGED: 1, Change.UNCHANGED: images - 1}
    with session(catalog) as connection:
        (job,) = open_jobs(connection)
    assert (job["job_type"], job["priority"]) == ("update", 2)


def test_a_post_that_leaves_the_latest_twelve_keeps_what_is_published_and_opens_no_job(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate(profiles=1, posts_per_profile=12)
    found(source, catalog)
    mirror_all(catalog)
    oldest = str(population.post_ids[-1])
    demo.add_post(source, SIGNER, population.profile_ids[0], now=NOW)
    demo.resign_all(source, SIGNER, now=NOW)
    found(source, catalog)
    with session(catalog) as connection:
        shown = sa.text(
            "SELECT cdn_path_256 FROM cdn_image_urls WHERE source_id = :id AND source_type = 'post_thumbnail'"
        )
        assert connection.scalar(shown, {"id": oldest})
        jobs_of_oldest = sa.text("""
            SELECT count(*) FROM cdn_image_jobs j JOIN cdn_image_assets a ON a.id = j.asset_id
            WHERE a.source_id = :id AND j.status = 'queued'""")
        assert connection.scalar(jobs_of_oldest, {"id": oldest}) == 0
        assert open_jobs(connection)


def test_nasty_rows_are_counted_and_never_fatal(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate(profiles=8, nasty_rows=True)
    discovered = found(source, catalog)
    problems = sum((each.problems for each in discovered.values()), Counter[str]())
    assert problems == {"no_url": 3, "bad_url": 1}
    assert sum(len(each.samples) for each in discovered.values()) == 4
    assert sum(each.arrived_dead for each in discovered.values()) == 3  # posts of two years ago
    with session(catalog) as connection:
        dead = sa.text("SELECT count(*) FROM cdn_image_assets WHERE failure_kind = 'source_url_expired'")
        assert connection.scalar(dead) == 3


def test_an_image_that_a_post_repeats_is_one_image(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate(profiles=1, posts_per_profile=1)
    child = {"id": "7", "display_url": "https://x/v/t51.2885-15/7_n.jpg"}
    with source.begin() as connection:
        connection.execute(demo.posts_table.update().values(sidecar_children=[child, child]))
    assert changes(found(source, catalog)) == {Change.NEW: 3}


def test_two_discoveries_at_once_find_every_image_once(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    populate(profiles=20)
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: found(source, catalog), range(3)))
    images = sum(changes(reports[0]).values())
    assert count(catalog, "cdn_image_assets") == count(catalog, "cdn_image_jobs") == images
    assert changes(found(source, catalog)) == {Change.UNCHANGED: images}


def test_an_older_row_does_not_overwrite_what_another_run_writes_meanwhile(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run writes between the comparison and the writing of this one."""
    population = populate(profiles=1, posts_per_profile=0)
    found(source, catalog)
    mirror_all(catalog)
    profile_id = population.profile_ids[0]
    older = demo.replace_avatar(source, SIGNER, profile_id, now=NOW - timedelta(minutes=30))
    reads = 0

    def read_and_be_overtaken(connection: sa.Connection, keys: Any) -> Any:
        nonlocal reads
        reads += 1
        known = known_images(connection, keys)
        if reads == 1:
            newer = demo.replace_avatar(source, SIGNER, profile_id, now=NOW)
            assert newer != older
            assert changes(found(source, catalog)) == {Change.CHANGED: 1}
        return known

    monkeypatch.setattr(discover_module, "known_images", read_and_be_overtaken)
    assert changes(found(source, catalog)) == {Change.OUTDATED: 1}
    with session(catalog) as connection:
        identity = connection.scalar(sa.text("SELECT identity FROM cdn_image_assets"))
        assert identity != f"file:{older.file_name.partition('.')[0]}"
        (job,) = open_jobs(connection)
        assert uuid.UUID(str(job["id"]))


def test_samples_of_problems_are_few_in_every_shard(source: sa.Engine, catalog: sa.Engine) -> None:
    with source.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO profiles (id, username, updated_at)
                SELECT CAST(first || lpad(n::text, 7, '0') || '-0000-4000-8000-000000000000' AS uuid), 'nobody', now()
                FROM (VALUES ('0'), ('f')) AS shards(first), generate_series(1, 30) AS n""")
        )
    discovered = found(source, catalog)
    for shard in ("00", "3c"):
        assert discovered[shard].problems == {"no_url": 30}
        assert len(discovered[shard].samples) == discover_module.MAX_SAMPLES
