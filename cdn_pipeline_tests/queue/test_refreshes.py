"""A user's refresh from the request to its answer: opened once, limited, held by one run, never lost."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue import refreshes as module
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.leases import hold_run
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.refreshes import (
    EXPIRES_AFTER,
    PAUSE,
    Limits,
    Refresh,
    RefreshAnswer,
    TooManyRefreshesError,
    UnknownOwnerError,
    expire_refreshes,
    finish_refresh,
    latest_refresh,
    note_launch,
    open_refresh,
    shards_to_refresh,
    take_refreshes,
    wants_run,
)
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.tombstones import set_image_tombstones, set_owner_tombstone
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    jobs,
    outcome,
    publish,
    reference,
    register,
    see,
    session,
    source_url,
    take_one,
)

MANY = Limits(open_at_once=1000, per_minute=1000)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def show(connection: sa.Connection, *owners: str) -> None:
    see(connection, *(reference(source_url(owner), image=owner, owner=owner) for owner in owners))


def ask(connection: sa.Connection, owner: str = "owner", limits: Limits = MANY) -> tuple[Refresh, bool]:
    return open_refresh(connection, INSTAGRAM, owner, limits)


def take(connection: sa.Connection, run_id: str) -> list[str]:
    return [refresh.owner_id for refresh in take_refreshes(connection, INSTAGRAM, SHARDS, run_id)]


def answer(connection: sa.Connection, refresh: Refresh, answer: RefreshAnswer = RefreshAnswer.ANSWERED) -> None:
    finish_refresh(connection, INSTAGRAM, refresh, answer)


def let_pass(connection: sa.Connection, time: timedelta) -> None:
    """As if every refresh had happened so much earlier."""
    earlier = (
        "requested_at = requested_at - CAST(:time AS interval), finished_at = finished_at - CAST(:time AS interval)"
    )
    connection.execute(sa.text(f"UPDATE cdn_refreshes SET {earlier}"), {"time": time})


def killed_run(connection: sa.Connection, run_id: str) -> None:
    """A run that was started, has not ended and holds no lock."""
    register = "INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES (:run_id, 1, 'here:1')"
    connection.execute(sa.text(register), {"run_id": run_id})


# -- asking --


def test_a_refresh_is_open_until_it_is_answered_and_asking_again_changes_nothing(connection: sa.Connection) -> None:
    show(connection, "owner")
    first, is_new = ask(connection)
    assert is_new
    assert (first.shard, first.run_id, first.launched, first.answer) == ("00", None, False, None)
    assert ask(connection) == (first, False)
    answer(connection, first)
    last = latest_refresh(connection, INSTAGRAM, "owner")
    assert last is not None
    assert (last.id, last.answer) == (first.id, RefreshAnswer.ANSWERED)
    assert last.finished_at is not None


def test_of_many_requests_at_once_one_opens_a_refresh(catalog: sa.Engine, connection: sa.Connection) -> None:
    show(connection, "owner")
    work = partial(open_refresh, collection=INSTAGRAM, owner_id="owner", limits=MANY)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: transaction(catalog, work), range(16)))
    assert sum(is_new for _, is_new in opened) == 1
    assert len({refresh.id for refresh, _ in opened}) == 1


def test_requests_at_once_do_not_slip_through_a_limit_together(catalog: sa.Engine, connection: sa.Connection) -> None:
    owners = [f"owner-{number}" for number in range(12)]
    show(connection, *owners)

    def work(owner: str) -> bool:
        limits = Limits(open_at_once=5, per_minute=1000)
        try:
            transaction(catalog, partial(open_refresh, collection=INSTAGRAM, owner_id=owner, limits=limits))
        except TooManyRefreshesError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, owners)) == 5


def test_an_owner_without_images_is_unknown(connection: sa.Connection) -> None:
    show(connection, "removed")
    connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now()"))
    for owner in ("removed", "never seen", str(uuid.uuid4())):
        with pytest.raises(UnknownOwnerError):
            ask(connection, owner)


def test_an_erased_owner_is_unknown_and_one_with_an_erased_picture_is_not(connection: sa.Connection) -> None:
    show(connection, "erased", "owner")
    set_owner_tombstone(connection, INSTAGRAM, "erased")
    asset_ids = connection.scalars(sa.text("SELECT id FROM cdn_image_assets WHERE owner_id = 'owner'")).all()
    set_image_tombstones(connection, INSTAGRAM, "owner", asset_ids)
    with pytest.raises(UnknownOwnerError):
        ask(connection, "erased")
    assert ask(connection, "owner")[1]


def test_an_owner_rests_after_an_answer_and_others_do_not(connection: sa.Connection) -> None:
    show(connection, "owner", "other")
    answer(connection, ask(connection)[0], RefreshAnswer.UNAVAILABLE)
    let_pass(connection, PAUSE / 2)
    with pytest.raises(TooManyRefreshesError) as refused:
        ask(connection)
    assert timedelta(0) < refused.value.retry_after <= PAUSE / 2
    assert ask(connection, "other")[1]
    let_pass(connection, PAUSE / 2)
    assert ask(connection)[1]


@pytest.mark.parametrize(
    ("limits", "words", "longest"),
    [
        (Limits(open_at_once=2), "2 profiles wait", timedelta(minutes=1)),
        (Limits(per_minute=2), "2 refreshes were asked for in the last minute", timedelta(minutes=1)),
        (Limits(per_day=2), "Today's 2 refreshes are used up", timedelta(days=1)),
    ],
)
def test_there_are_limits_for_all_owners_together(
    connection: sa.Connection, limits: Limits, words: str, longest: timedelta
) -> None:
    show(connection, "a", "b", "c")
    first, _ = ask(connection, "a", limits)
    ask(connection, "b", limits)
    with pytest.raises(TooManyRefreshesError, match=words) as refused:
        ask(connection, "c", limits)
    assert timedelta(0) < refused.value.retry_after <= longest
    assert ask(connection, "a", limits) == (first, False)
    for refresh in take_refreshes(connection, INSTAGRAM, SHARDS, "run"):
        answer(connection, refresh)
    let_pass(connection, timedelta(days=1))
    assert ask(connection, "c", limits)[1]


def test_who_is_refused_or_has_one_already_waits_for_nobody(catalog: sa.Engine, connection: sa.Connection) -> None:
    show(connection, "open", "rested", "late")
    ask(connection, "open")
    answer(connection, ask(connection, "rested")[0])
    with catalog.connect() as another, another.begin():
        another.execute(sa.text("SELECT pg_advisory_xact_lock(:turnstile)"), {"turnstile": module._TURNSTILE})
        connection.execute(sa.text("SET lock_timeout = '1s'"))
        assert not ask(connection, "open")[1]
        for owner, limits in (("rested", MANY), ("late", Limits(per_minute=2))):
            with pytest.raises(TooManyRefreshesError):
                ask(connection, owner, limits)
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            ask(connection, "late")


def test_of_a_shards_refreshes_within_a_minute_the_first_wants_a_run(connection: sa.Connection) -> None:
    see(connection, *(reference(image=shard, owner=f"owner-{shard}", shard=shard[:2]) for shard in ("00", "00a", "07")))
    wants = {}
    for owner in ("owner-00", "owner-00a", "owner-07"):
        wants[owner] = wants_run(connection, INSTAGRAM, ask(connection, owner)[0])
    assert wants == {"owner-00": True, "owner-00a": False, "owner-07": True}
    for refresh in take_refreshes(connection, INSTAGRAM, SHARDS, "run"):
        answer(connection, refresh)
    let_pass(connection, PAUSE)
    assert wants_run(connection, INSTAGRAM, ask(connection, "owner-00a")[0])
    let_pass(connection, timedelta(minutes=1))
    assert wants_run(connection, INSTAGRAM, ask(connection, "owner-00")[0])


# -- the run --


def test_what_a_living_run_holds_is_left_to_it_and_what_an_ended_one_held_is_free(
    catalog: sa.Engine, connection: sa.Connection
) -> None:
    show(connection, "owner")
    ask(connection)
    assert shards_to_refresh(connection, INSTAGRAM) == {"00"}
    with hold_run(catalog, "first"):
        assert take(connection, "first") == ["owner"]
        assert shards_to_refresh(connection, INSTAGRAM) == frozenset()
        assert take(connection, "second") == []
        assert take(connection, "first") == ["owner"]
    assert shards_to_refresh(connection, INSTAGRAM) == {"00"}
    assert take(connection, "second") == ["owner"]


def test_what_a_killed_run_held_is_free(connection: sa.Connection) -> None:
    show(connection, "owner")
    ask(connection)
    killed_run(connection, "killed")
    take(connection, "killed")
    assert shards_to_refresh(connection, INSTAGRAM) == {"00"}
    assert take(connection, "next") == ["owner"]


def test_a_run_that_was_launched_and_has_not_begun_holds_nothing(connection: sa.Connection) -> None:
    show(connection, "owner")
    refresh, _ = ask(connection)
    note_launch(connection, refresh.id, "launched")
    last = latest_refresh(connection, INSTAGRAM, "owner")
    assert last is not None
    assert (last.run_id, last.launched) == ("launched", True)
    [taken] = take_refreshes(connection, INSTAGRAM, SHARDS, "another")
    assert (taken.run_id, taken.launched) == ("another", False)
    # Told late: the other one has begun with it.
    assert note_launch(connection, refresh.id, "launched") == taken
    assert latest_refresh(connection, INSTAGRAM, "owner") == taken


def test_the_launched_run_itself_may_have_begun_before_its_id_is_noted(connection: sa.Connection) -> None:
    show(connection, "owner")
    refresh, _ = ask(connection)
    take(connection, "launched")
    note_launch(connection, refresh.id, "launched")
    last = latest_refresh(connection, INSTAGRAM, "owner")
    assert last is not None
    assert (last.run_id, last.launched) == ("launched", True)


def test_a_refresh_that_no_run_came_to_expires_and_may_be_asked_for_anew(connection: sa.Connection) -> None:
    show(connection, "owner")
    first, _ = ask(connection)
    let_pass(connection, EXPIRES_AFTER)
    told = latest_refresh(connection, INSTAGRAM, "owner")
    assert told is not None
    assert (told.answer, told.finished_at) == (RefreshAnswer.EXPIRED, None)
    assert expire_refreshes(connection) == 1
    assert expire_refreshes(connection) == 0
    assert shards_to_refresh(connection, INSTAGRAM) == frozenset()
    second, is_new = ask(connection)
    assert is_new
    assert second.id != first.id


def test_a_refresh_in_hand_does_not_expire_under_its_run(catalog: sa.Engine, connection: sa.Connection) -> None:
    show(connection, "owner")
    ask(connection)
    with hold_run(catalog, "slow"):
        [refresh] = take_refreshes(connection, INSTAGRAM, SHARDS, "slow")
        let_pass(connection, 2 * EXPIRES_AFTER)
        assert expire_refreshes(connection) == 0
        assert ask(connection)[1] is False
        answer(connection, refresh)
    last = latest_refresh(connection, INSTAGRAM, "owner")
    assert last is not None
    assert last.answer is RefreshAnswer.ANSWERED


def test_a_killed_run_keeps_no_refresh_from_expiring(connection: sa.Connection) -> None:
    show(connection, "owner")
    ask(connection)
    killed_run(connection, "killed")
    take(connection, "killed")
    let_pass(connection, EXPIRES_AFTER)
    assert expire_refreshes(connection) == 1


def test_a_launch_for_an_owner_who_was_erased_meanwhile_is_noted_nowhere(connection: sa.Connection) -> None:
    assert note_launch(connection, uuid.uuid4(), "launched") is None


def test_a_run_takes_the_oldest_first_and_only_those_of_its_shards(connection: sa.Connection) -> None:
    see(connection, *(reference(image=shard, owner=f"owner-{shard}", shard=shard) for shard in ("07", "00", "3f")))
    for shard in ("07", "00", "3f"):
        ask(connection, f"owner-{shard}")
    taken = take_refreshes(connection, INSTAGRAM, ["00", "07"], "run")
    assert [refresh.owner_id for refresh in taken] == ["owner-07", "owner-00"]
    assert shards_to_refresh(connection, INSTAGRAM) >= {"3f"}


# -- the owner's jobs --


def priorities(connection: sa.Connection) -> list[int]:
    return [job["priority"] for job in jobs(connection)]


def test_an_answer_puts_the_owners_jobs_before_all_others(connection: sa.Connection) -> None:
    show(connection, "owner", "other")
    answer(connection, ask(connection)[0])
    found = connection.execute(
        sa.text("SELECT owner_id, priority FROM cdn_image_jobs j JOIN cdn_image_assets a ON a.id = j.asset_id")
    )
    assert dict(map(tuple, found)) == {"owner": 1, "other": INSTAGRAM.priorities["profile_avatar"]}


def test_an_answer_lets_a_retry_go_at_once_and_keeps_its_count(connection: sa.Connection) -> None:
    register(connection, RUN)
    show(connection, "owner")
    job = take_one(connection)
    settle(
        connection,
        RUN,
        [outcome(job, Verdict.RETRYING, failure=FailureKind.CONNECTION_FAILED, retry_in_seconds=6 * 3600)],
    )
    answer(connection, ask(connection)[0])
    [waited] = jobs(connection)
    assert (waited["priority"], waited["retry_count"]) == (1, 1)
    assert take_one(connection).job_id == job.job_id


def test_an_answer_leaves_alone_what_is_on_hold_being_encoded_again_or_done(connection: sa.Connection) -> None:
    show(connection, "owner")
    hold_queue(connection, INSTAGRAM)
    answer(connection, ask(connection)[0])
    assert priorities(connection) == [INSTAGRAM.priorities["profile_avatar"]]

    connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = NULL, priority = 10"))
    let_pass(connection, PAUSE)
    answer(connection, ask(connection)[0])
    assert priorities(connection) == [10]


def test_an_answer_opens_no_job_for_a_completed_image(connection: sa.Connection) -> None:
    register(connection, RUN)
    show(connection, "owner")
    publish(connection)
    answer(connection, ask(connection)[0])
    assert [job["status"] for job in jobs(connection)] == ["completed"]
