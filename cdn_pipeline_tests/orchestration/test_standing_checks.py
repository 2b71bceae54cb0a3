"""The standing checks in Dagster: their verdicts, what they say, and where they run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster import AssetCheckKey

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.definitions import defs
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe import standing
from cdn_pipeline.observe.thresholds import MINIMUM_SAMPLE
from cdn_pipeline.orchestration.resources import CatalogResource
from cdn_pipeline.orchestration.standing_checks import standing_checks
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.orchestration.workplace import ALL_SHARDS, PUBLISHED, Workplace, verdicts
from cdn_pipeline_tests.queue.catalogs import (
    NOW,
    RUN,
    outcome,
    published,
    reference,
    see,
    session,
    source_url,
    take,
    take_one,
)
from cdn_pipeline_tests.world import SmallWorld

PASSES = (True, "WARN")
WARNS = (False, "WARN")
FAILS = (False, "ERROR")
ALL_WELL = {check.name: PASSES for check in standing_checks.check_keys}


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def judge(workplace: Workplace) -> dg.ExecuteInProcessResult:
    """A run of the job, as the schedule starts it."""
    result = defs.resolve_job_def("standing_checks").execute_in_process(instance=workplace.instance)
    assert result.success  # whatever the checks say
    return result


def evaluation(run: dg.ExecuteInProcessResult, check: str) -> tuple[str, Mapping[str, Any]]:
    """What a check said, and its numbers as plain values."""
    [made] = [made for made in run.get_asset_check_evaluations() if made.check_name == check]
    return made.description or "", {name: value.value for name, value in made.metadata.items()}


def age(connection: sa.Connection, time: timedelta) -> None:
    """Lets all that the catalog knows be so much older."""
    for table, columns in {
        "cdn_image_assets": ("url_expires_at", "observed_at"),
        "cdn_image_jobs": ("deadline", "created_at", "next_attempt_at"),
    }.items():
        moved = ", ".join(f"{column} = {column} - :time" for column in columns)
        connection.execute(sa.text(f"UPDATE {table} SET {moved}"), {"time": time})


def mark_scanned(connection: sa.Connection, shards: Sequence[str], ago: timedelta) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, fully_scanned_at)
            SELECT 'instagram', shard, now(), now() - :ago FROM unnest(CAST(:shards AS text[])) AS shard"""),
        {"shards": list(shards), "ago": ago},
    )


def test_in_a_new_catalog_all_is_well(memory_workplace: Workplace) -> None:
    run = judge(memory_workplace)
    assert verdicts(run) == ALL_WELL
    said = {name: evaluation(run, name)[0] for name in ALL_WELL}
    assert said == {
        "no_image_lost_on_our_watch": "images lost on our watch: 0",
        "images_arrived_dead": "images that had expired before we saw them: 0",
        "deadlines_can_be_kept": "no image waits for its download",
        "no_due_image_left_waiting": "no urgent job is due",
        "no_host_left_alone_for_long": "hosts with an open breaker: 0",
        "no_erasure_left_unfinished": "unfinished erasures: 0",
        "every_shard_was_scanned_within_a_day": (
            "never scanned: run `nightly_freshness`, or materialize source_images"
        ),
        "no_shard_left_failed": "shards left failed: 0",
    }


def test_a_lost_image_is_an_error_that_names_it(memory_workplace: Workplace, connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(hours=5))))
    age(connection, timedelta(hours=5.5))

    run = judge(memory_workplace)

    assert verdicts(run) == {
        **ALL_WELL,
        "no_image_lost_on_our_watch": FAILS,
        "deadlines_can_be_kept": WARNS,
        "no_due_image_left_waiting": WARNS,
    }
    words, numbers = evaluation(run, "no_image_lost_on_our_watch")
    assert words == "images lost on our watch: 1, 1 of them in the last 7 d"
    assert (numbers["lost"], numbers["lost in the last 7 d"]) == (1, 1)
    [sample] = numbers["samples"]
    assert str(connection.scalar(sa.text("SELECT id FROM cdn_image_assets"))) in sample
    due = evaluation(run, "no_due_image_left_waiting")[1]
    assert (due["due"], due["shard of the oldest"]) == (1, "00")
    assert 5.5 * 60 <= due["oldest (minutes)"] < 5.6 * 60


def test_an_image_lost_weeks_ago_is_a_warning(memory_workplace: Workplace, connection: sa.Connection) -> None:
    """Its source may never show it again: an error would never end."""
    see(connection, reference())
    settle(connection, RUN, [outcome(take_one(connection), Verdict.WAITING, failure=FailureKind.SOURCE_URL_EXPIRED)])
    age(connection, timedelta(days=11))
    run = judge(memory_workplace)
    assert verdicts(run) == {**ALL_WELL, "no_image_lost_on_our_watch": WARNS}
    assert evaluation(run, "no_image_lost_on_our_watch")[0] == (
        "images lost on our watch: 1, none of them in the last 7 d"
    )


def test_the_two_checks_of_lost_images_ask_the_catalog_once(
    memory_workplace: Workplace, catalog: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Mock(wraps=standing.watch)
    monkeypatch.setattr(standing, "watch", watched)
    judge(memory_workplace)
    watched.assert_called_once()


def test_a_job_that_is_left_for_six_hours_is_an_error(memory_workplace: Workplace, connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(days=3))))
    age(connection, timedelta(hours=7))
    assert verdicts(judge(memory_workplace)) == {**ALL_WELL, "no_due_image_left_waiting": FAILS}


def test_images_that_arrived_dead_only_inform(memory_workplace: Workplace, connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(hours=-5))))
    run = judge(memory_workplace)
    assert verdicts(run) == ALL_WELL
    assert evaluation(run, "images_arrived_dead")[1]["arrived dead"] == 1


def test_deadlines_that_cannot_be_kept_are_told_beforehand(
    memory_workplace: Workplace, connection: sa.Connection
) -> None:
    see(connection, *(reference(image=str(number)) for number in range(MINIMUM_SAMPLE)))
    settle(connection, RUN, [replace(published(job), renditions=(), download_ms=5) for job in take(connection)])
    connection.execute(  # a second for each
        sa.text("""UPDATE cdn_image_jobs SET started_at = completed_at - interval '20 s',
                   busy = tstzmultirange(tstzrange(completed_at - interval '20 s', completed_at))""")
    )
    late = source_url(lives=datetime.now(UTC) - NOW + timedelta(minutes=5))
    see(connection, *(reference(late, image=f"late {number}") for number in range(400)))

    run = judge(memory_workplace)

    assert verdicts(run) == {**ALL_WELL, "deadlines_can_be_kept": WARNS}
    words, numbers = evaluation(run, "deadlines_can_be_kept")
    assert numbers["images per second"] == pytest.approx(1, rel=0.001)
    assert numbers["waiting"] == 400
    assert 100 <= numbers["expire before we reach them"] < 250  # 100 and those of the seconds since the import
    assert "first expires" in numbers
    assert "(at 1.0 images/s)" in words


def test_shards_that_were_not_scanned_last_night_are_named(
    memory_workplace: Workplace, connection: sa.Connection
) -> None:
    mark_scanned(connection, SHARDS[2:], timedelta(hours=25))
    mark_scanned(connection, SHARDS[:1], timedelta(hours=27))

    run = judge(memory_workplace)

    assert verdicts(run) == {**ALL_WELL, "every_shard_was_scanned_within_a_day": WARNS}
    words, numbers = evaluation(run, "every_shard_was_scanned_within_a_day")
    assert words == "shards not read in full for 26 h: 2"
    assert numbers["stale shards"] == ["00", "01"]


def test_shards_whose_last_run_failed_are_named_until_they_succeed(
    memory_workplace: Workplace, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_world(profiles=1, posts=0)
    with monkeypatch.context() as broken:
        broken.setenv("SOURCE_DATABASE_URL", "postgresql://127.0.0.1:9/nowhere")
        assert not memory_workplace.run("00", "1f").success

    failed = judge(memory_workplace)

    assert verdicts(failed) == {**ALL_WELL, "no_shard_left_failed": WARNS}
    numbers = evaluation(failed, "no_shard_left_failed")[1]
    assert numbers["failed"] >= 32
    assert numbers["failed shards"] == [f"source_images {shard}" for shard in SHARDS[:20]]

    assert memory_workplace.run("00", "1f").success
    assert verdicts(judge(memory_workplace))["no_shard_left_failed"] == PASSES


def test_one_check_can_be_executed_alone(memory_workplace: Workplace) -> None:
    run = dg.materialize(
        [standing_checks],
        selection=dg.AssetSelection.checks(AssetCheckKey(PUBLISHED, "no_image_lost_on_our_watch")),
        instance=memory_workplace.instance,
        resources={"catalog": CatalogResource()},
    )
    assert verdicts(run) == {"no_image_lost_on_our_watch": PASSES}


def test_a_run_of_the_images_tells_whether_deadlines_can_be_kept(
    memory_workplace: Workplace, small_world: SmallWorld
) -> None:
    small_world(profiles=3, posts=0)
    run = memory_workplace.run(*ALL_SHARDS)
    assert run.success
    assert "no_image_lost_on_our_watch" not in verdicts(run)  # told every hour, not by each run
    numbers = evaluation(run, "success_rate")[1]
    assert (numbers["images waiting"], numbers["images that expire before we reach them"]) == (0, 0)


@pytest.mark.parametrize("shards", [("00",), ("00", "01")])
def test_materializing_the_images_in_the_ui_judges_their_standing_as_well(
    memory_workplace: Workplace, small_world: SmallWorld, shards: tuple[str, ...]
) -> None:
    """There, a selection of assets comes with all their checks, and none of them may be skipped."""
    small_world(profiles=3, posts=0)
    names = ["source_images", "original_images", "image_renditions", "published_images"]
    run = memory_workplace.materialize(names, *shards)
    assert run.success
    assert ALL_WELL.items() <= verdicts(run).items()


def test_a_host_that_is_left_alone_for_long_is_a_warning_that_names_it(
    memory_workplace: Workplace, connection: sa.Connection
) -> None:
    see(connection, reference())
    connection.execute(
        sa.text("""
            INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
            VALUES ('cdn.example', 8, 'download_timeout', now() - interval '6 minutes', now() + interval '1 minute')""")
    )
    run = judge(memory_workplace)
    assert verdicts(run) == {**ALL_WELL, "no_host_left_alone_for_long": WARNS}
    words, numbers = evaluation(run, "no_host_left_alone_for_long")
    assert words == "hosts with an open breaker: 1, 1 of them for more than 5 min"
    assert (numbers["open breakers"], numbers["images behind them"]) == (1, 1)
    assert "cdn.example" in numbers["hosts"][0]


def test_an_erasure_that_does_not_end_is_an_error_that_names_it(
    memory_workplace: Workplace, connection: sa.Connection
) -> None:
    for state, hours in (("open", 2), ("purge_pending", 0.5), ("done", 3)):
        connection.execute(
            sa.text("""
                INSERT INTO cdn_erasures (collection, owner_id, scope, requested_by, reason, state, created_at)
                VALUES ('instagram', 'somebody', 'owner', 'us', 'a ticket', :state, now() - :ago)"""),
            {"state": state, "ago": timedelta(hours=hours)},
        )
    run = judge(memory_workplace)
    assert verdicts(run) == {**ALL_WELL, "no_erasure_left_unfinished": FAILS}
    words, numbers = evaluation(run, "no_erasure_left_unfinished")
    assert words == "unfinished erasures: 2, 1 of them older than 60 min"
    assert numbers["old"] == ["owner somebody, open: interrupted"]
