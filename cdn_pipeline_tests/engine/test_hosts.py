"""Hosts that fail, and whole runs beside them."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from cdn_pipeline.demo.app_database import profiles_table
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.engine import hosts as hosts_module
from cdn_pipeline.engine.backlog import Admission
from cdn_pipeline.engine.hosts import Hosts, HostShut
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.concurrency import FIRST_LIMIT
from cdn_pipeline.fetch.hosts import TURNS_AT_ONCE
from cdn_pipeline.queue.hosts import BREAKER_FAILURES, look_at_breakers, note_failure, reserve_turns
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.engine.runs import (
    QUICK,
    assert_nothing_in_hand,
    images,
    job_states,
    jobs,
    make_due,
    retries,
    rows,
    run,
)
from cdn_pipeline_tests.engine.test_backlog import job
from cdn_pipeline_tests.world import SmallWorld, World

HOST = "pictures.example"
INSTAGRAM_HOST = "scontent.cdninstagram.com"
PATIENCE = timedelta(seconds=24)
REFUSED = ImageFailure(FailureKind.CONNECTION_FAILED)


def in_hosts(catalog: sa.Engine, scenario: Callable[[Hosts], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with Hosts(catalog, patience=PATIENCE) as hosts:
            await scenario(hosts)

    asyncio.run(main())


async def ask(hosts: Hosts, failure: ImageFailure | None = None, host: str = HOST) -> type[Exception] | None:
    """One download that is answered, or fails so; what the image is told."""
    try:
        async with hosts.visit(host):
            if failure:
                raise failure
    except (ImageFailure, HostShut) as told:
        return type(told)
    return None


def breakers(catalog: sa.Engine) -> list[dict[str, Any]]:
    return rows(catalog, "SELECT * FROM cdn_hosts WHERE opened_at IS NOT NULL")


def half_open(catalog: sa.Engine) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE cdn_hosts SET retry_at = now() WHERE opened_at IS NOT NULL"))


# -- breakers --


def test_the_fifth_failure_opens_the_breaker_and_the_host_is_asked_no_more(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        assert [await ask(hosts, REFUSED) for _ in range(BREAKER_FAILURES)] == [ImageFailure] * BREAKER_FAILURES
        assert await ask(hosts) is HostShut
        assert hosts.admits(job(HOST)) is Admission.RELEASE
        assert hosts.admits(job("other.example")) is Admission.START
        assert hosts.admits(job(HOST, stage=Stage.ENCODE)) is Admission.START

    in_hosts(catalog, scenario)
    [row] = breakers(catalog)
    assert (row["host"], row["failures"], row["failure_kind"]) == (HOST, BREAKER_FAILURES, "connection_failed")


def test_images_that_fail_after_the_breaker_has_opened_are_not_to_blame(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        told = await asyncio.gather(*(ask(hosts, REFUSED) for _ in range(int(FIRST_LIMIT))))
        assert Counter(told) == {ImageFailure: BREAKER_FAILURES, HostShut: FIRST_LIMIT - BREAKER_FAILURES}

    in_hosts(catalog, scenario)


@pytest.mark.parametrize(
    "failure",
    [
        ImageFailure(FailureKind.SOURCE_URL_404),
        ImageFailure(FailureKind.SOURCE_FORBIDDEN),
        ImageFailure(FailureKind.NOT_AN_IMAGE),
        ImageFailure(FailureKind.SOURCE_ERROR, status=400),
    ],
    ids=str,
)
def test_what_tells_of_one_url_opens_no_breaker(catalog: sa.Engine, failure: ImageFailure) -> None:
    async def scenario(hosts: Hosts) -> None:
        for _ in range(2 * BREAKER_FAILURES):
            assert await ask(hosts, failure) is ImageFailure
        assert hosts.admits(job(HOST)) is Admission.START

    in_hosts(catalog, scenario)
    assert rows(catalog, "SELECT * FROM cdn_hosts") == []


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_tells_of_the_host_opens_its_breaker(catalog: sa.Engine, status: int) -> None:
    async def scenario(hosts: Hosts) -> None:
        for _ in range(BREAKER_FAILURES):
            await ask(hosts, ImageFailure(FailureKind.SOURCE_ERROR, status=status))

    in_hosts(catalog, scenario)
    assert len(breakers(catalog)) == 1


def test_answers_of_a_host_that_is_well_cost_the_catalog_nothing(
    catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(hosts: Hosts) -> None:
        monkeypatch.setattr(hosts_module, "transaction", None)
        for _ in range(10):
            assert await ask(hosts) is None

    in_hosts(catalog, scenario)


def test_an_answer_after_failures_is_noted_once(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        await ask(hosts, REFUSED)
        await ask(hosts)
        for _ in range(BREAKER_FAILURES - 1):
            await ask(hosts, REFUSED)

    in_hosts(catalog, scenario)
    assert breakers(catalog) == []


def test_one_image_probes_a_half_open_host_and_its_answer_lets_the_others_in(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        for _ in range(BREAKER_FAILURES):
            await ask(hosts, REFUSED)
        half_open(catalog)
        with catalog.begin() as connection:
            hosts.see(hosts.look(connection))
        assert hosts.admits(job(HOST)) is Admission.START
        async with hosts.visit(HOST):
            assert hosts.admits(job(HOST)) is Admission.WAIT
            assert await ask(hosts) is HostShut
        assert hosts.admits(job(HOST)) is Admission.START
        assert await ask(hosts) is None

    in_hosts(catalog, scenario)
    assert breakers(catalog) == []


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_a_probe_that_comes_to_nothing_leaves_the_host_alone(catalog: sa.Engine, how: str) -> None:
    async def scenario(hosts: Hosts) -> None:
        for _ in range(BREAKER_FAILURES):
            await ask(hosts, REFUSED)
        half_open(catalog)
        with catalog.begin() as connection:
            hosts.see(hosts.look(connection))
        if how == "fails":
            assert await ask(hosts, REFUSED) is ImageFailure  # or the same image would be the next probe as well
        else:
            with pytest.raises(asyncio.CancelledError):
                async with hosts.visit(HOST):
                    raise asyncio.CancelledError
        assert hosts.admits(job(HOST)) is Admission.RELEASE

    in_hosts(catalog, scenario)
    assert len(breakers(catalog)) == 1


def test_what_another_run_has_learned_is_seen_at_the_next_look(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        with catalog.begin() as connection:
            note_failure(connection, HOST, FailureKind.RATE_LIMITED, retry_after=timedelta(minutes=5))
            assert hosts.admits(job(HOST)) is Admission.START
            hosts.see(hosts.look(connection))
        assert hosts.admits(job(HOST)) is Admission.RELEASE
        with catalog.begin() as connection:
            connection.execute(sa.text("DELETE FROM cdn_hosts"))
            hosts.see(hosts.look(connection))
        assert hosts.admits(job(HOST)) is Admission.START

    in_hosts(catalog, scenario)


def test_a_host_that_wants_a_short_rest_is_waited_for(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        told = await ask(hosts, ImageFailure(FailureKind.RATE_LIMITED, status=429, retry_after_seconds=5))
        assert told is ImageFailure
        assert hosts.admits(job(HOST)) is Admission.WAIT

    in_hosts(catalog, scenario)


# -- rate and concurrency --


def test_no_more_images_ask_a_host_at_once_than_it_has_room_for(catalog: sa.Engine) -> None:
    @asynccontextmanager
    async def crowd(hosts: Hosts, size: int) -> AsyncIterator[None]:
        done = asyncio.Event()

        async def download() -> None:
            async with hosts.visit(HOST):
                await done.wait()

        tasks = [asyncio.create_task(download()) for _ in range(size)]
        await asyncio.sleep(0)
        yield
        done.set()
        await asyncio.gather(*tasks)

    async def scenario(hosts: Hosts) -> None:
        async with crowd(hosts, int(FIRST_LIMIT) - 1):
            assert hosts.admits(job(HOST)) is Admission.START
        async with crowd(hosts, int(FIRST_LIMIT)):
            assert hosts.admits(job(HOST)) is Admission.WAIT
            assert hosts.admits(job("other.example")) is Admission.START
        assert hosts.admits(job(HOST)) is Admission.START

    in_hosts(catalog, scenario)


def test_images_that_wait_for_their_turn_at_instagram_do_not_take_the_places_of_others(catalog: sa.Engine) -> None:
    async def scenario(hosts: Hosts) -> None:
        with catalog.begin() as connection:  # another run has had all turns of the next minute
            reserve_turns(connection, INSTAGRAM_HOST, turns=300, spacing=timedelta(seconds=0.2))
        asking = [asyncio.create_task(ask(hosts, host=INSTAGRAM_HOST)) for _ in range(TURNS_AT_ONCE)]
        await asyncio.sleep(0)
        assert hosts.admits(job(INSTAGRAM_HOST)) is Admission.WAIT
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert hosts.admits(job(INSTAGRAM_HOST)) is Admission.START

    in_hosts(catalog, scenario)


# -- whole runs --


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])


def move_avatars(world: World, base: str, count: int) -> None:
    """The avatars of the first profiles are at another host, which serves the same pictures if anything does."""
    with world.engine.begin() as connection:
        for profile_id in world.profile_ids[:count]:
            row = connection.execute(profiles_table.select().where(profiles_table.c.id == profile_id)).mappings().one()
            moved = {
                name: base + row[name].removeprefix(f"http://{urlsplit(row[name]).netloc}")
                for name in ("profile_pic_url", "profile_pic_url_hd")
            }
            connection.execute(profiles_table.update().where(profiles_table.c.id == profile_id).values(moved))


def test_a_dead_host_leaves_its_images_due_and_the_others_are_published(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=24, posts=1)
    move_avatars(world, f"http://127.0.0.2:{closed_port()}", 20)
    tally = run(settings)
    assert_nothing_in_hand(catalog)
    assert job_states(catalog) == {"completed": len(images(catalog)) - 20, "queued": 20}
    assert tally.published == len(images(catalog)) - 20
    behind = [each for each in jobs(catalog) if each["status"] == "queued"]
    assert {each["host"] for each in behind} == {"127.0.0.2"}
    assert sum(each["retry_count"] for each in behind) == BREAKER_FAILURES
    assert tally.failed <= BREAKER_FAILURES
    assert tally.not_in_rate == 0
    [row] = breakers(catalog)
    assert row["host"] == "127.0.0.2"
    before = jobs(catalog)
    assert run(settings).images == 0
    assert jobs(catalog) == before


def test_all_that_a_dead_host_held_up_is_had_once_it_is_back(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=12, posts=0)
    port = closed_port()
    move_avatars(world, f"http://127.0.0.2:{port}", 12)
    assert run(settings).published == 0
    with second_origin(world, port):
        make_due(catalog)
        assert run(settings).published == 12
    assert breakers(catalog) == []


@contextmanager
def second_origin(world: World, port: int) -> Iterator[None]:
    """The world's origin at another address."""
    with in_thread(listening(world.origin.application(), "127.0.0.2", port)):
        yield


def test_a_host_that_asks_for_a_rest_gets_it_and_the_run_goes_on_afterwards(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    world = small_world(profiles=6, posts=0)
    with world.engine.connect() as connection:
        path = urlsplit(connection.scalars(sa.select(profiles_table.c.profile_pic_url_hd)).first() or "").path
    world.origin.misbehaviour.order(path, Fault.RATE_LIMITED)  # Retry-After: 2
    tally = run(settings, collection=replace(QUICK, retry=retries(0.1, 5)))
    assert (tally.published, tally.success_rate) == (6, 1.0)
    assert breakers(catalog) == []
    with catalog.begin() as connection:
        assert look_at_breakers(connection) == []


def test_an_image_whose_other_url_is_behind_a_breaker_is_tried_again_when_that_may_be_asked(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine
) -> None:
    """Its best URL has failed for good: released, it would be due again at once, without end."""
    world = small_world(profiles=1, posts=0)
    with world.engine.begin() as connection:
        row = connection.execute(sa.select(profiles_table)).mappings().one()
        urls = {
            "profile_pic_url_hd": row["profile_pic_url_hd"].replace("oh=00_Af", "oh=00_AfX"),
            "profile_pic_url": row["profile_pic_url"].replace("127.0.0.1", "127.0.0.2"),
        }
        connection.execute(profiles_table.update().values(urls))
    with catalog.begin() as connection:
        note_failure(connection, "127.0.0.2", FailureKind.RATE_LIMITED, retry_after=timedelta(hours=1))
    tally = run(settings)
    assert tally.failures == {FailureKind.RATE_LIMITED: 1}
    [left] = jobs(catalog)
    assert (left["status"], left["host"], left["retry_count"]) == ("queued", "127.0.0.1", 1)
    assert left["next_attempt_at"] - left["updated_at"] > timedelta(minutes=14)
