import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.leases import (
    LEASE,
    RENEW_EVERY,
    Run,
    RunAlreadyHeldError,
    RunLostError,
    dead_runs,
    end_runs,
    hold_run,
    killed_runs,
    release_dead_leases,
    renew_leases,
)
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.queue.catalogs import (
    advanced,
    image,
    jobs,
    only,
    outcome,
    reference,
    see,
    session,
    source_url,
    take,
    take_one,
)

PATIENCE_SECONDS = 20.0  # for another process to die or to start: usually milliseconds


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


@contextmanager
def holder(database: str, run_id: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the run and has claimed all of shard 00."""
    command = [sys.executable, "-m", "cdn_pipeline_tests.queue.lease_holder", database, run_id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "2\n"
            yield process
        finally:
            process.kill()


def advisory_locks(connection: sa.Connection) -> int:
    """How many are held in this database."""
    return connection.execute(
        sa.text("""
            SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE locktype = 'advisory' AND datname = current_database()
        """)
    ).rowcount


def expire(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE cdn_image_jobs SET lease_until = now() - interval '1 second'"))


def test_a_lease_is_renewed_long_before_it_ends() -> None:
    assert RENEW_EVERY * 3 < LEASE <= timedelta(minutes=1)


def test_a_killed_process_frees_its_jobs_at_once(catalog: sa.Engine, catalog_database: str) -> None:
    with session(catalog) as connection:
        see(connection, reference(image="1"), reference(image="2"))
        with holder(catalog_database, "killed") as process:
            assert release_dead_leases(connection, ["00"]) == 0
            assert dead_runs(connection) == []
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert eventually(lambda: dead_runs(connection)) == ["killed"]
        assert release_dead_leases(connection, ["01"]) == 0
        assert release_dead_leases(connection, ["00"]) == 2
        assert {(job["status"], job["run_id"], job["lease_until"]) for job in jobs(connection)} == {
            ("queued", None, None)
        }
        assert len(take(connection)) == 2
        end_runs(connection, ["killed"])
        assert dead_runs(connection) == []


def test_a_stopped_process_keeps_its_jobs_until_the_lease_ends(catalog: sa.Engine, catalog_database: str) -> None:
    with session(catalog) as connection:
        see(connection, reference(image="1"), reference(image="2"))
        with holder(catalog_database, "stopped") as process:
            os.kill(process.pid, signal.SIGSTOP)
            assert release_dead_leases(connection, ["00"]) == 0
            expire(connection)
            assert release_dead_leases(connection, ["00"]) == 2
            assert dead_runs(connection) == []


def test_two_processes_cannot_hold_one_run(catalog: sa.Engine, catalog_database: str) -> None:
    with session(catalog) as connection:
        see(connection, reference(image="1"), reference(image="2"))
    with holder(catalog_database, "twice"):
        with pytest.raises(RunAlreadyHeldError, match="twice"), hold_run(catalog, "twice"):
            pass
        with hold_run(catalog, "another"):
            pass


def test_a_run_that_starts_again_takes_back_what_its_dead_process_held(
    catalog: sa.Engine, catalog_database: str
) -> None:
    with session(catalog) as connection:
        see(connection, reference(image="1"), reference(image="2"))
        with holder(catalog_database, "again") as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
        eventually(lambda: dead_runs(connection))
        with hold_run(catalog, "again") as run:
            assert dead_runs(connection) == []
            assert len(take(connection, run)) == 2


def test_a_run_lives_exactly_as_long_as_its_block(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        with hold_run(catalog, "run") as run:
            assert run.worker_id.endswith(f":{os.getpid()}")
            row = only(connection, "cdn_runs")
            assert (row["run_id"], row["worker_id"], row["ended_at"]) == ("run", run.worker_id, None)
            assert (advisory_locks(connection), dead_runs(connection)) == (1, [])
        assert only(connection, "cdn_runs")["ended_at"] is not None
        assert (advisory_locks(connection), dead_runs(connection)) == (0, [])


def test_a_run_ends_with_its_block_whatever_was_raised(catalog: sa.Engine) -> None:
    with pytest.raises(ZeroDivisionError), hold_run(catalog, "run"):
        raise ZeroDivisionError
    with hold_run(catalog, "run"), session(catalog) as connection:
        assert advisory_locks(connection) == 1


def test_the_lock_does_not_outlive_the_block_even_if_the_end_cannot_be_noted(
    catalog: sa.Engine, catalog_database: str
) -> None:
    impatient = sa.create_engine(catalog_database, connect_args={"options": "-c lock_timeout=50ms"})
    with catalog.begin() as connection:
        with hold_run(impatient, "run"):
            connection.execute(sa.text("LOCK TABLE cdn_runs"))
        eventually(lambda: advisory_locks(connection) == 0)
        assert only(connection, "cdn_runs")["ended_at"] is None
        assert dead_runs(connection) == ["run"]
    impatient.dispose()


def test_a_run_ends_quietly_when_the_catalog_has_gone_away(catalog: sa.Engine) -> None:
    with hold_run(catalog, "run"), session(catalog) as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
        )
        assert eventually(lambda: dead_runs(connection)) == ["run"]
    with hold_run(catalog, "run"):
        pass


@pytest.mark.parametrize(
    ("server_started", "run_started", "killed"),
    [
        (timedelta(seconds=-30), timedelta(seconds=-40), False),
        (timedelta(seconds=-30), timedelta(seconds=-20), True),
        (timedelta(seconds=-90), timedelta(seconds=-100), True),
    ],
)
def test_a_run_that_may_have_lost_its_lock_to_a_restart_of_the_catalog_has_a_minute_to_take_it_again(
    catalog: sa.Engine, server_started: timedelta, run_started: timedelta, killed: bool
) -> None:
    with catalog.begin() as connection:
        for statement in (
            "CREATE SCHEMA server",
            "CREATE FUNCTION server.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql AS "
            f"$$ SELECT pg_catalog.now() + interval '{server_started.total_seconds()} s' $$",
            "SET LOCAL search_path = server, public, pg_catalog",
        ):
            connection.execute(sa.text(statement))
        connection.execute(
            sa.text(
                "INSERT INTO cdn_runs (run_id, lock_key, worker_id, started_at) VALUES ('run', 1, 'w', now() + :s)"
            ),
            {"s": run_started},
        )
        assert dead_runs(connection) == ["run"]
        assert killed_runs(connection) == (["run"] if killed else [])


def test_an_ended_run_frees_what_it_left_in_hand(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        with hold_run(catalog, "run") as run:
            take_one(connection, run)
            assert release_dead_leases(connection, ["00"]) == 0
        assert release_dead_leases(connection, ["00"]) == 1
        assert image(connection)["processing_status"] == "pending"


def test_the_jobs_of_a_run_that_nobody_knows_are_freed(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        take_one(connection, Run("unknown", "nowhere"))
        assert release_dead_leases(connection, ["00"]) == 1


def test_a_run_whose_lock_is_gone_learns_it_at_its_next_renewal(catalog: sa.Engine) -> None:
    with hold_run(catalog, "mine") as mine, session(catalog) as connection:
        renew_leases(connection, mine)
        connection.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
        while "mine" not in dead_runs(connection):  # the backend ends a moment later; pytest's time limit bounds it
            pass
        for noted in ([], ["mine"]):  # others may note its end before it looks
            end_runs(connection, noted)
            with pytest.raises(RunLostError, match="mine"):
                renew_leases(connection, mine)


def test_renewal_extends_only_the_leases_that_are_still_held(catalog: sa.Engine) -> None:
    with session(catalog) as connection, hold_run(catalog, "mine") as mine, hold_run(catalog, "theirs") as theirs:
        see(connection, *(reference(image=str(number), shard=f"0{number}") for number in range(3)))
        take(connection, mine, shards=["00", "01"])
        take(connection, theirs, shards=["02"])
        expire(connection)
        assert release_dead_leases(connection, ["01"]) == 1
        assert renew_leases(connection, mine) == 1
        assert release_dead_leases(connection, ["00", "01", "02"]) == 1  # theirs
        assert renew_leases(connection, theirs) == 0


# -- what changed while the image was in hand --


def test_a_job_that_is_freed_follows_the_url_that_came_meanwhile(catalog: sa.Engine) -> None:
    fresh = source_url("fresh", lives=timedelta(days=9))
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        take_one(connection)
        see(connection, reference(fresh))
        release_dead_leases(connection, ["00"])
        (row,) = jobs(connection)
        assert (row["source_url"], row["deadline"]) == (fresh.url, fresh.expires_at)


@pytest.mark.parametrize(
    ("meanwhile", "stage"),
    [
        (source_url(picture="B"), Stage.DOWNLOAD),
        (source_url("better", rank=2000), Stage.DOWNLOAD),
        (source_url("again", lives=timedelta(days=9)), Stage.PUBLISH),
        (source_url(), Stage.PUBLISH),
    ],
    ids=["another picture", "a better rank", "signed again", "nothing"],
)
def test_a_job_that_is_freed_keeps_its_stage_only_while_the_original_is_the_picture(
    catalog: sa.Engine, meanwhile: Any, stage: Stage
) -> None:
    with session(catalog) as connection:
        see(connection, reference(age=timedelta(hours=1)))
        settle(connection, Run("first", ""), [advanced(take_one(connection, Run("first", "")))])
        assert take_one(connection).stage is Stage.PUBLISH
        see(connection, reference(meanwhile))
        release_dead_leases(connection, ["00"])
        assert take_one(connection).stage is stage


def test_being_freed_costs_no_retry_and_keeps_the_failure(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        run = Run("run", "")
        settle(
            connection, run, [outcome(take_one(connection, run), Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR)]
        )
        take_one(connection, run)
        release_dead_leases(connection, ["00"])
        again = take_one(connection, run)
        assert (again.retry_count, again.last_failure) == (1, FailureKind.SOURCE_ERROR)


def test_a_run_that_slept_through_its_lease_was_busy_until_its_last_renewal(catalog: sa.Engine) -> None:
    with hold_run(catalog, "sleeper") as run, session(catalog) as connection:
        see(connection, reference())
        taken = take_one(connection, run)
        connection.execute(
            sa.text("""UPDATE cdn_image_jobs SET started_at = clock_timestamp() - interval '10 minutes',
                              lease_until = clock_timestamp() - interval '5 minutes'""")
        )
        (asleep,) = jobs(connection)
        renew_leases(connection, run)
        settle(connection, run, [outcome(taken, Verdict.PUBLISHED)])
        before, after = jobs(connection)[0]["busy"]
        assert (before.lower, before.upper) == (asleep["started_at"], asleep["lease_until"] - LEASE)
        assert after.lower > asleep["lease_until"]
