"""Runs that end in the middle. One shard is finished by then, pictures of another are in hand.

What is in hand waits for an origin that answers after a minute, so a test sees the same state however fast it is.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from cdn_pipeline.demo.faults import NO_FAULTS, Fault, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline_tests.orchestration.workplace import PUBLISHED, Workplace, wait_until
from cdn_pipeline_tests.world import SmallWorld, World


@pytest.fixture
def origin(picture_folder: Path) -> Iterator[Origin]:
    """It answers to the fault SLOW after a minute."""
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), slow_seconds=60) as origin:
        yield origin


@pytest.fixture
def world(small_world: SmallWorld) -> World:
    """Two shards, each with an avatar and two posts; the origin is slow with every picture of the second."""
    world = small_world(profiles=2, posts=2)
    order_fault(world, Fault.SLOW, attempts=1000)
    return world


@pytest.fixture
def shards(world: World) -> tuple[str, str]:
    first, second = sorted(map(shard_of, world.profile_ids))
    assert first != second
    return first, second


def order_fault(world: World, fault: Fault, *, attempts: int) -> None:
    """For the next attempts at each picture of the second shard."""
    with world.engine.connect() as connection:
        paths = connection.scalars(
            sa.text("""
                WITH owner AS (SELECT id, profile_pic_url FROM profiles ORDER BY id DESC LIMIT 1)
                SELECT profile_pic_url FROM owner
                UNION SELECT display_url FROM posts WHERE profile_id = (SELECT id FROM owner)
                UNION SELECT jsonb_path_query(sidecar_children, '$.**.display_url') #>> '{}' FROM posts
                      WHERE profile_id = (SELECT id FROM owner)
            """)
        )
        for url in paths:
            path = url.removeprefix(world.origin.base_url).partition("?")[0]
            world.origin.misbehaviour.order(path, fault, attempts=attempts)


def statuses_of_jobs(catalog: sa.Engine, shard: str) -> set[str]:
    with catalog.connect() as connection:
        return set(
            connection.scalars(sa.text("SELECT status FROM cdn_image_jobs WHERE shard = :shard"), {"shard": shard})
        )


def start_and_wait(workplace: Workplace, catalog: sa.Engine, shards: tuple[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a run and returns when the first shard is reported and the second is in hand."""
    process = workplace.start(*shards)
    wait_until(
        lambda: (
            process.poll() is not None
            or (
                workplace.statuses().get(shards[0]) == "MATERIALIZED"
                and "processing" in statuses_of_jobs(catalog, shards[1])
            )
        )
    )
    assert process.poll() is None, workplace.log.read_text()
    return process


def assert_published_once(catalog: sa.Engine) -> None:
    """Every image is complete, and no rendition was made twice."""
    with catalog.connect() as connection:
        assert set(connection.scalars(sa.text("SELECT processing_status FROM cdn_image_assets"))) == {"completed"}
        states = connection.execute(
            sa.text("SELECT asset_id, array_agg(state || size_name) FROM cdn_image_renditions GROUP BY asset_id")
        )
        assert all(sorted(state) == ["current256", "current512"] for _, state in states)


def test_sigterm_ends_a_run_cleanly(
    workplace: Workplace, world: World, catalog: sa.Engine, shards: tuple[str, str]
) -> None:
    process = start_and_wait(workplace, catalog, shards)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children  # the workers

    process.terminate()

    assert process.wait() == 1
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert statuses_of_jobs(catalog, shards[1]) == {"queued"}
    assert workplace.latest_run().status is dg.DagsterRunStatus.FAILURE
    assert workplace.statuses()[shards[0]] == "MATERIALIZED"
    assert workplace.statuses()[shards[1]] == "FAILED"
    assert workplace.check_statuses("shard_success_rate")[shards[0]] == "SUCCEEDED"


def test_after_kill_9_the_next_run_does_the_rest(
    workplace: Workplace, world: World, catalog: sa.Engine, shards: tuple[str, str]
) -> None:
    process = start_and_wait(workplace, catalog, shards)
    children = psutil.Process(process.pid).children(recursive=True)
    killed = workplace.latest_run().run_id

    process.kill()
    process.wait()
    world.origin.misbehaviour = Misbehaviour(NO_FAULTS)
    status = workplace.execute(*shards)

    assert status == 0, workplace.log.read_text()
    assert not psutil.wait_procs(children, timeout=10)[1]
    run = workplace.instance.get_run_by_id(killed)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert set(workplace.statuses().values()) == {"MATERIALIZED"}
    assert set(shards) <= set(workplace.statuses())
    assert_published_once(catalog)
    # what the killed run had published was not fetched again
    assert workplace.metadata(workplace.latest_run().run_id, PUBLISHED, shards[0])["published"] == 0


def test_a_finished_shard_counts_even_if_a_later_one_breaks_the_run(
    workplace: Workplace, world: World, catalog: sa.Engine, shards: tuple[str, str]
) -> None:
    # The catalog refuses the second shard's outcomes, which come 4 s later than those of the first: a retry's delay.
    order_fault(world, Fault.SERVER_ERROR, attempts=1)
    with catalog.begin() as connection:
        connection.execute(
            sa.text("""
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'the catalog refuses'; END $$
            """)
        )
        connection.execute(
            sa.text(f"""
                CREATE TRIGGER refuse BEFORE UPDATE ON cdn_image_jobs FOR EACH ROW
                WHEN (NEW.shard = '{shards[1]}' AND NEW.status = 'completed') EXECUTE FUNCTION refuse()
            """)
        )

    run = workplace.run(*shards)

    assert not run.success
    assert workplace.statuses()[shards[0]] == "MATERIALIZED"
    assert workplace.statuses()[shards[1]] == "FAILED"
    assert workplace.check_statuses("shard_success_rate")[shards[0]] == "SUCCEEDED"
    assert workplace.check_statuses("success_rate") == {None: "PLANNED"}
