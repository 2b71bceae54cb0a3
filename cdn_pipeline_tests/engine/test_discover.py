import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo import app_database as demo
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.engine import discover as discover_module
from cdn_pipeline.engine.discover import Discovered, discover, take_in
from cdn_pipeline.queue.erasures import open_erasure, take_down
from cdn_pipeline.queue.intake import known_images, lock_images, record
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.tombstones import set_owner_tombstone
from cdn_pipeline.queue.watermarks import read_watermarks
from cdn_pipeline.sources import app_database
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.changes import Watermark
from cdn_pipeline.sources.discovery import Change, ImageKey, ImageReference, compare
from cdn_pipeline_tests.queue.catalogs import RUN, open_jobs, published, session, take

NOW = datetime.now(UTC)
PATIENCE_SECONDS = 20.0
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


def found(
    source: sa.Engine, catalog: sa.Engine, shards: Sequence[str] = SHARDS, *, changed_only: bool = False
) -> dict[str, Discovered]:
    return {each.shard: each for each in discover(source, catalog, INSTAGRAM, shards, changed_only=changed_only)}


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


# -- what is gone --


def column(catalog: sa.Engine, name: str, source_id: uuid.UUID) -> list[Any]:
    """Of all images of a profile or post."""
    with session(catalog) as connection:
        found = sa.text(f"SELECT {name} FROM cdn_image_assets WHERE source_id = :id ORDER BY source_type, media_id")
        return list(connection.scalars(found, {"id": str(source_id)}))


def removed(discovered: dict[str, Discovered]) -> int:
    return sum(each.removed for each in discovered.values())


def test_a_scan_of_everything_checks_every_image_that_the_source_shows(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    populate()
    found(source, catalog)
    with session(catalog) as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET last_checked = now() - interval '1 day'"))
        began = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    found(source, catalog)
    with session(catalog) as connection:
        assert connection.execute(sa.text("SELECT min(last_checked) FROM cdn_image_assets")).scalar_one() > began


def test_an_image_whose_row_is_gone_is_noticed_once_and_what_is_published_stays(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate(profiles=2)
    found(source, catalog)
    mirror_all(catalog)
    post_id = population.post_ids[0]
    images = len(column(catalog, "id", post_id))
    demo.delete_post(source, post_id)

    discovered = found(source, catalog)
    assert removed(discovered) == images >= 1
    assert discovered[shard_of(population.profile_ids[0])].removed == images
    (noticed, *_) = column(catalog, "removed_at", post_id)
    assert noticed
    assert column(catalog, "processing_status", post_id) == ["completed"] * images

    assert removed(found(source, catalog)) == 0
    assert set(column(catalog, "removed_at", post_id)) == {noticed}


def test_an_image_whose_row_comes_back_is_no_longer_gone(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate(profiles=1, posts_per_profile=0)
    found(source, catalog)
    with source.begin() as connection:
        (row,) = connection.execute(sa.select(demo.profiles_table)).mappings().all()
        connection.execute(demo.profiles_table.delete())
    assert removed(found(source, catalog)) == 1
    with source.begin() as connection:
        connection.execute(demo.profiles_table.insert(), {**row, "updated_at": datetime.now(UTC)})
    discovered = found(source, catalog, changed_only=True)
    assert changes(discovered) == {Change.UNCHANGED: 1}
    assert column(catalog, "removed_at", population.profile_ids[0]) == [None]


def test_a_post_that_left_the_latest_twelve_and_a_row_without_a_url_are_not_gone(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate(profiles=1, posts_per_profile=12)
    found(source, catalog)
    demo.add_post(source, SIGNER, population.profile_ids[0])
    with source.begin() as connection:
        connection.execute(demo.profiles_table.update().values(profile_pic_url=None, profile_pic_url_hd=None))
    assert removed(found(source, catalog)) == 0
    assert set(column(catalog, "removed_at", population.post_ids[-1])) == {None}
    assert column(catalog, "removed_at", population.profile_ids[0]) == [None]


def test_images_of_other_shards_are_not_gone(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    population = populate(profiles=10)
    images = changes(found(source, catalog))[Change.NEW]
    with source.begin() as connection:
        connection.execute(demo.posts_table.delete())
        connection.execute(demo.profiles_table.delete())
    gone = removed(found(source, catalog, [shard_of(population.profile_ids[0])]))
    assert 0 < gone < images
    assert removed(found(source, catalog)) == images - gone


# -- what has changed --


def watermarks(catalog: sa.Engine) -> dict[str, Watermark]:
    with session(catalog) as connection:
        return read_watermarks(connection, INSTAGRAM)


def state(catalog: sa.Engine) -> list[tuple[Any, ...]]:
    """What the catalog says of images and their open jobs, but for ids and times of our own clock."""
    with session(catalog) as connection:
        rows = connection.execute(
            sa.text("""
                SELECT a.source_type, a.source_id, a.media_id, a.shard, a.source_url, a.fallback_urls::text, a.identity,
                       a.rank, a.url_expires_at, a.observed_at, a.needs_update, a.removed_at, j.job_type, j.priority,
                       j.deadline, j.status
                FROM cdn_image_assets a LEFT JOIN cdn_image_jobs j ON j.asset_id = a.id AND j.status = 'queued'
                ORDER BY 1, 2, 3""")
        )
        return [tuple(row) for row in rows]


def test_a_shard_has_a_watermark_once_it_is_done_and_not_before(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_database, "PROFILES_PER_BATCH", 2)
    populate(profiles=10)
    with source.connect() as connection:
        before = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    discovery = discover(source, catalog, INSTAGRAM, SHARDS)
    assert watermarks(catalog) == {}
    first_with_profiles = next(report for report in discovery if report.profiles)
    done = watermarks(catalog)
    assert first_with_profiles.shard in done
    assert set(done) == set(SHARDS[: len(done)]) < set(SHARDS)
    list(discovery)
    assert set(watermarks(catalog)) == set(SHARDS)
    assert min(mark.scanned_at for mark in watermarks(catalog).values()) > before


def test_shards_that_were_never_read_are_read_whole(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    population = populate(profiles=20)
    half = SHARDS[:32]
    found(source, catalog, half)
    discovered = found(source, catalog, changed_only=True)
    assert list(discovered) == list(SHARDS)
    assert [shard for shard in SHARDS if discovered[shard].every_row] == list(SHARDS[32:])
    everybody = Counter(shard_of(each) for each in population.profile_ids)
    assert sum(each.profiles for each in discovered.values()) == sum(everybody[shard] for shard in SHARDS[32:])


def test_nothing_is_read_where_nothing_changed(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    populate()
    found(source, catalog)
    discovered = found(source, catalog, changed_only=True)
    assert sum(each.profiles for each in discovered.values()) == 0
    assert not any(each.every_row for each in discovered.values())


def test_reading_what_changed_finds_the_same_as_reading_everything(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    population = populate(profiles=10)
    found(source, catalog)
    mirror_all(catalog)
    demo.replace_avatar(source, SIGNER, population.profile_ids[0])
    demo.add_post(source, SIGNER, population.profile_ids[1])
    demo.add_profile(source, SIGNER, seed=1, posts=2)
    with source.begin() as connection:
        again = demo.posts_table.update().where(demo.posts_table.c.id == population.post_ids[-1])
        connection.execute(again.values(display_url=None, updated_at=datetime.now(UTC)))

    discovered = found(source, catalog, changed_only=True)
    assert sum(each.profiles for each in discovered.values()) == 4
    changed = state(catalog)
    assert changes(discovered)[Change.NEW] >= 1 + 1 + 2
    everything = found(source, catalog)
    assert state(catalog) == changed
    assert set(changes(everything)) <= {Change.UNCHANGED, Change.OUTDATED}


def test_interrupted_changes_are_found_again(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch
) -> None:
    populate()
    found(source, catalog)
    profile_id = demo.add_profile(source, SIGNER, seed=1, posts=0)
    before = watermarks(catalog)
    monkeypatch.setattr(discover_module, "advance_watermarks", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found(source, catalog, changed_only=True)
    assert watermarks(catalog) == before
    monkeypatch.undo()
    discovered = found(source, catalog, changed_only=True)
    assert discovered[shard_of(profile_id)].profiles == 1
    assert all(mark.scanned_at > before[shard].scanned_at for shard, mark in watermarks(catalog).items())


# -- somebody else writes between the first look and the lock --


def profile_images(source: sa.Engine) -> list[ImageReference]:
    (batch,) = app_database.read_references(source, SHARDS[0], SHARDS[-1])
    return batch.references


def wait_until_somebody_waits(catalog: sa.Engine, locktype: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = :locktype AND NOT granted")
    with session(catalog) as connection:
        while not connection.scalar(waiting, {"locktype": locktype}):
            assert time.monotonic() < deadline, "nobody waits"
            time.sleep(0.01)


def test_what_another_run_commits_while_this_one_waits_for_the_lock_is_compared_again(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    (profile_id,) = populate(profiles=1, posts_per_profile=0).profile_ids
    found(source, catalog)
    newer = demo.replace_avatar(source, SIGNER, profile_id, now=NOW)
    with catalog.connect() as other, ThreadPoolExecutor(1) as pool:
        take_in(other, INSTAGRAM, profile_images(source))
        demo.replace_avatar(source, SIGNER, profile_id, now=NOW - timedelta(minutes=30))
        this_one = pool.submit(found, source, catalog)
        wait_until_somebody_waits(catalog, "transactionid")
        other.commit()
        assert changes(this_one.result()) == {Change.OUTDATED: 1}
    assert column(catalog, "identity", profile_id) == [f"file:{newer.file_name.partition('.')[0]}"]


@pytest.mark.parametrize("overtaken", [0, 1])
def test_only_what_another_run_has_written_since_the_first_look_is_read_again(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch, overtaken: int
) -> None:
    profile_id, *_ = populate().profile_ids
    images = changes(found(source, catalog))[Change.NEW]
    demo.resign_all(source, SIGNER, now=NOW)
    avatars = [each for each in profile_images(source) if each.key.source_id == str(profile_id)]
    looks: list[Sequence[ImageKey]] = []

    def read_and_be_overtaken(connection: sa.Connection, keys: Sequence[ImageKey]) -> Any:
        looks.append(keys)
        known = known_images(connection, keys)
        if len(looks) == 1:
            with catalog.begin() as other:
                overwriting = [compare(each, known[each.key], NOW) for each in avatars[:overtaken]]
                record(other, INSTAGRAM, overwriting)
        return known

    monkeypatch.setattr(discover_module, "known_images", read_and_be_overtaken)
    seen = changes(found(source, catalog))
    assert [len(keys) for keys in looks] == [images, 1][: 1 + overtaken]
    assert looks[1:] == [[each.key] for each in avatars[:overtaken]]
    assert (seen[Change.RESIGNED], seen.get(Change.UNCHANGED, 0)) == (images - overtaken, overtaken)


def test_an_image_whose_row_is_gone_before_it_is_locked_is_new(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch
) -> None:
    populate(profiles=1, posts_per_profile=0)
    found(source, catalog)
    demo.resign_all(source, SIGNER, now=NOW)

    def lock_too_late(connection: sa.Connection, keys: Sequence[ImageKey]) -> dict[ImageKey, str]:
        with session(catalog) as other:
            other.execute(sa.text("DELETE FROM cdn_image_jobs"))
            other.execute(sa.text("DELETE FROM cdn_image_assets"))
        return lock_images(connection, keys)

    monkeypatch.setattr(discover_module, "lock_images", lock_too_late)
    assert changes(found(source, catalog)) == {Change.NEW: 1}
    assert count(catalog, "cdn_image_assets") == count(catalog, "cdn_image_jobs") == 1


@pytest.mark.parametrize("is_known", [True, False])
def test_an_erasure_that_begins_after_the_first_look_waits_and_finds_all_that_is_written(
    source: sa.Engine, catalog: sa.Engine, populate: Populate, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    (profile_id,) = populate(profiles=1, posts_per_profile=2).profile_ids
    if is_known:
        found(source, catalog)
        demo.resign_all(source, SIGNER, now=NOW)

    def erase() -> None:
        with catalog.begin() as connection:
            erasure_id = set_owner_tombstone(connection, INSTAGRAM, str(profile_id))
            open_erasure(
                connection, INSTAGRAM, erasure_id, str(profile_id), scope="owner", requested_by="us", reason=""
            )
            take_down(connection, erasure_id)

    with ThreadPoolExecutor(1) as pool:
        erasing: list[Future[None]] = []

        def be_overtaken(connection: sa.Connection, keys: Sequence[ImageKey]) -> dict[ImageKey, str]:
            erasing.append(pool.submit(erase))
            wait_until_somebody_waits(catalog, "advisory")
            return lock_images(connection, keys)

        monkeypatch.setattr(discover_module, "lock_images", be_overtaken)
        assert set(changes(found(source, catalog))) == {Change.RESIGNED if is_known else Change.NEW}
        erasing[0].result()
    monkeypatch.undo()
    assert count(catalog, "cdn_image_assets") == 0
    assert changes(found(source, catalog)) == {}


# -- what a night writes --


def test_an_image_that_is_signed_again_is_written_once_and_is_sighted(
    source: sa.Engine, catalog: sa.Engine, populate: Populate
) -> None:
    populate()
    images = changes(found(source, catalog))[Change.NEW]
    demo.resign_all(source, SIGNER, now=NOW)
    with session(catalog) as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now(), last_checked = 'epoch'"))
        connection.execute(sa.text("CREATE TABLE written (id uuid, last_checked timestamptz, removed_at timestamptz)"))
        connection.execute(
            sa.text("""
                CREATE FUNCTION note_written() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    INSERT INTO written VALUES (NEW.id, NEW.last_checked, NEW.removed_at); RETURN NULL;
                END $$""")
        )
        connection.execute(
            sa.text("""
                CREATE TRIGGER note AFTER UPDATE ON cdn_image_assets
                FOR EACH ROW EXECUTE FUNCTION note_written()""")
        )
        began = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
    assert changes(found(source, catalog)) == {Change.RESIGNED: images}
    with session(catalog) as connection:
        written = connection.execute(sa.text("SELECT * FROM written")).all()
    assert len(written) == len({row.id for row in written}) == images
    assert all(row.last_checked > began and row.removed_at is None for row in written)


def test_what_is_not_of_a_source_row_is_not_sighted(source: sa.Engine, catalog: sa.Engine, populate: Populate) -> None:
    (profile_id,) = populate(profiles=1, posts_per_profile=0).profile_ids
    found(source, catalog)
    with session(catalog) as connection:
        connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = 'epoch', last_checked = 'epoch'"))
    demo.resign_all(source, SIGNER, now=NOW)
    with catalog.begin() as connection:
        (sighting,) = take_in(connection, INSTAGRAM, profile_images(source))
    assert sighting.change is Change.RESIGNED
    assert column(catalog, "extract(epoch FROM removed_at)", profile_id) == [0]
    assert column(catalog, "extract(epoch FROM last_checked)", profile_id) == [0]
