"""A sample of a small world goes through all stages, and again without each of them; the deployment stays as it is."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.engine.pool import WorkerPool
from cdn_pipeline.observe import bottleneck
from cdn_pipeline.observe.bottleneck import BOUNDS_FROM, Pass, measure_stages, verdict
from cdn_pipeline.observe.null_stages import NullStage
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.cli.conftest import Invoke, connection, invoke
from cdn_pipeline_tests.engine.runs import QUICK, folder, objects_in, run
from cdn_pipeline_tests.s3 import S3Server, moto_server
from cdn_pipeline_tests.world import SmallWorld

__all__ = ["connection", "invoke", "moto_server"]

EVERY_PASS = [None, NullStage.DOWNLOAD, NullStage.TRANSCODE, NullStage.STORE]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, postgres_server: EmbeddedPostgres) -> None:
    """Scratch catalogs are databases of the tests' own server: a new one takes a second to start and to stop."""
    monkeypatch.setattr(bottleneck, "_scratch_server", lambda: nullcontext(postgres_server))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many objects each pass leaves in its two stores: renditions, originals, renditions, …"""
    counts: list[int] = []
    empty = bottleneck._empty

    async def count_and_empty(settings: Settings, url: str) -> None:
        counts.append(len(objects_in(url)))
        await empty(settings, url)

    monkeypatch.setattr(bottleneck, "_empty", count_and_empty)
    return counts


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many tasks the worker processes were given so far."""
    count: Counter[str] = Counter()
    run_task = WorkerPool.run

    async def counted(pool: WorkerPool, *arguments: Any, **options: Any) -> Any:
        count["tasks"] += 1
        return await run_task(pool, *arguments, **options)

    monkeypatch.setattr(WorkerPool, "run", counted)
    return count


@pytest.mark.usefixtures("scratch")
def test_every_pass_publishes_the_sample_and_what_is_left_out_does_nothing(
    settings: Settings, small_world: SmallWorld, stored: list[int], tasks: Counter[str]
) -> None:
    world = small_world(profiles=2, posts=3)
    passes, asked, transcoded = [], [0], [0]
    for done in measure_stages(settings, 6, collection=QUICK):
        passes.append((done.without, done.published))
        asked.append(world.origin.requests.total)
        transcoded.append(tasks["tasks"])
    assert passes == [(stage, 6) for stage in EVERY_PASS]
    assert [later - earlier for earlier, later in pairwise(asked)] == [6, 0, 6, 6]
    assert [later - earlier for earlier, later in pairwise(transcoded)] == [6, 6, 0, 6]
    assert stored[::2] == [12, 12, 12, 0]
    assert stored[1::2] == [6, 6, 6, 0]


def contents(database: sa.Engine) -> dict[str, list[str]]:
    """Every row of every table."""
    with database.connect() as connection:
        return {
            table: sorted(connection.scalars(sa.text(f"SELECT to_jsonb(t)::text FROM {table} t")))
            for table in sa.inspect(connection).get_table_names()
        }


def files(settings: Settings) -> dict[str, bytes]:
    """Every object of the deployment."""
    return objects_in(settings.objects_url) | objects_in(settings.originals_url)


@pytest.mark.usefixtures("scratch")
def test_the_deployment_stays_as_it_is_and_neither_erased_nor_failing_images_are_measured(
    settings: Settings, catalog: sa.Engine, small_world: SmallWorld, invoke: Invoke
) -> None:
    world = small_world(profiles=3, posts=2)
    run(settings, limit=4)  # some are published, others wait
    assert invoke("erase", "--owner", str(world.profile_ids[0]), "--yes").exit_code in (0, 2)
    with world.engine.connect() as connection:
        query = "SELECT display_url FROM posts WHERE profile_id = :profile LIMIT 1"
        url = str(connection.scalar(sa.text(query), {"profile": world.profile_ids[1]}))
    world.origin.delete_picture(url.removeprefix(world.origin.base_url).partition("?")[0])
    before = contents(catalog), contents(world.engine), files(settings)

    whole, *others = measure_stages(settings, 100, collection=QUICK)

    assert (whole.published, whole.failures.total()) == (5, 1)
    assert [(each.published, each.failures.total()) for each in others] == [(5, 0)] * 3
    assert (contents(catalog), contents(world.engine), files(settings)) == before
    assert [*folder(settings.objects_url).glob(".check/*"), *folder(settings.originals_url).glob(".check/*")] == []


@pytest.mark.usefixtures("scratch")
def test_a_bucket_is_left_empty(settings: Settings, small_world: SmallWorld, moto_server: S3Server) -> None:
    small_world(profiles=2, posts=1)
    buckets = [moto_server.new_bucket() for _ in range(2)]
    in_buckets = {
        "object_store_url": f"s3://{buckets[0]}",
        "originals_store_url": f"s3://{buckets[1]}",
        "r2_endpoint_url": moto_server.endpoint_url,
        "r2_access_key_id": moto_server.access_key_id,
        "r2_secret_access_key": moto_server.secret_access_key,
    }
    remote = Settings(_env_file=None, **{**settings.model_dump(exclude_unset=True), **in_buckets})  # type: ignore[call-arg]
    assert next(measure_stages(remote, 10, collection=QUICK)).published == 4
    for bucket in buckets:
        assert list(moto_server.store(f"s3://{bucket}")._store.list()) == []


@pytest.fixture
def slow_origin(picture_folder: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """An origin whose every answer takes so long that nothing else matters, and the application database."""
    with running_origin(picture_folder, slow_seconds=2.0) as origin:
        monkeypatch.setattr(origin.misbehaviour, "next_fault", lambda path, url_expires_at: Fault.SLOW)
        engine = sa.create_engine(empty_database)
        app_database.create_tables(engine)
        app_database.populate(engine, origin.signer, profiles=2, posts_per_profile=2, now=origin.now())
        engine.dispose()
        yield origin


def test_the_command_names_the_download_where_the_origin_is_slow(slow_origin: Origin, invoke: Invoke) -> None:
    result = invoke("bench", "--images", "10", columns=80)
    assert result.exit_code == 0, result.output
    assert "download bounds this machine: " in result.output
    for line in ("all stages", "without download", "without transcode", "without store"):
        assert f"  {line} " in result.output


@pytest.mark.usefixtures("scratch")
def test_the_command_says_so_where_every_source_url_is_dead(
    origin: Origin, small_world: SmallWorld, invoke: Invoke
) -> None:
    origin.advance_clock(timedelta(days=-100))
    small_world(profiles=1, posts=1)
    result = invoke("bench")
    assert result.exit_code == 1
    assert "No source URL is alive" in result.output


rates = st.integers(min_value=1, max_value=1000)


@given(rates, st.tuples(rates, rates, rates))
def test_the_verdict_names_the_stage_without_which_it_is_fastest_or_none(
    whole: int, others: tuple[int, int, int]
) -> None:
    passes = [Pass(stage, rate, 1.0, Counter()) for stage, rate in zip(EVERY_PASS, (whole, *others), strict=True)]
    words = verdict(passes)
    fastest = {stage for stage, rate in zip(NullStage, others, strict=True) if rate == max(others)}
    if max(others) >= BOUNDS_FROM * whole:
        assert words.partition(" ")[0] in fastest
        assert f"{whole:.1f} images/s; without it {max(others):.1f}." in words
    else:
        assert words.startswith("No stage alone")


def test_nothing_is_compared_where_nothing_was_published() -> None:
    assert "nothing can be compared" in verdict([Pass(None, 0, 0.0, Counter())])
