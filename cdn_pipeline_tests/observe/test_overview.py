"""The overview counts what the queue's own functions have written, and every trouble is found."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import Blame, FailureKind
from cdn_pipeline.observe.health import CheckUp, Health, check_up
from cdn_pipeline.observe.overview import Overview, look_over
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.leases import Run, hold_run
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import ImageStatus
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    outcome,
    published,
    reference,
    register,
    see,
    session,
    source_url,
    take,
)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def overview(connection: sa.Connection) -> Overview:
    with snapshot(connection.engine) as now:
        return look_over(now, INSTAGRAM)


def health(connection: sa.Connection) -> CheckUp:
    return check_up(overview(connection))


def see_many(connection: sa.Connection, count: int, first: int = 0) -> None:
    """Images of which another picture may be seen later."""
    hour_ago = timedelta(hours=1)
    see(connection, *(reference(image=str(number), age=hour_ago) for number in range(first, first + count)))


def end_all(connection: sa.Connection, verdict: Verdict, failure: FailureKind, limit: int | None = None) -> None:
    """The first due jobs end so, the others are published."""
    due = take(connection)
    ended = [outcome(job, verdict, failure=failure, retry_in_seconds=3600) for job in due[:limit]]
    settle(connection, RUN, ended + [published(job) for job in due[len(ended) :]])


def publish_all(connection: sa.Connection) -> None:
    settle(connection, RUN, [published(job) for job in take(connection)])


# -- what is counted --


def test_images_are_counted_by_status_and_what_was_published_once_stays_published(connection: sa.Connection) -> None:
    see_many(connection, 3)
    publish_all(connection)
    see(connection, reference(source_url("b", picture="B"), image="0"))  # a new picture of a published image
    see_many(connection, 1, first=3)
    images = overview(connection).images
    assert images.total == 4
    assert {status: count for status, count in images.by_status.items() if count} == {
        ImageStatus.COMPLETED: 2,
        ImageStatus.PENDING: 2,
    }
    assert (images.published, images.published_share) == (3, 0.75)


def test_the_queue_is_told_by_priority(connection: sa.Connection) -> None:
    register(connection, RUN)
    see(connection, *(reference(image=str(number), source_type="post_thumbnail") for number in range(3)))
    hold_queue(connection, INSTAGRAM)
    see_many(connection, 4)
    first, second, *others = take(connection)
    settle(connection, RUN, [outcome(first, Verdict.RETRYING, failure=FailureKind.SOURCE_ERROR, retry_in_seconds=7200)])
    settle(connection, RUN, [outcome(job, Verdict.RELEASED) for job in others])
    avatars, posts = overview(connection).queue
    assert (avatars.priority, avatars.due, avatars.retry_later, avatars.in_hand, avatars.held) == (2, 2, 1, 1, 0)
    assert (posts.priority, posts.due, posts.retry_later, posts.in_hand, posts.held) == (4, 0, 0, 0, 3)
    assert (avatars.depth, posts.depth) == (4, 0)
    assert avatars.next_attempt_at is not None
    assert avatars.due_since is not None
    assert posts.due_since is None
    assert avatars.due == len(take(connection))
    assert second.asset_id


def test_failures_are_counted_by_kind_with_blame_and_advice(connection: sa.Connection) -> None:
    see_many(connection, 5)
    end_all(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT, limit=2)
    see_many(connection, 3, first=5)
    end_all(connection, Verdict.WAITING, FailureKind.SIGNATURE_MISMATCH)
    signature, corrupt = overview(connection).failures
    assert (signature.kind, signature.images, signature.failed_for_good) == (FailureKind.SIGNATURE_MISMATCH, 3, 0)
    assert (corrupt.kind, corrupt.images, corrupt.failed_for_good) == (FailureKind.IMAGE_CORRUPT, 2, 2)
    assert (corrupt.blame, corrupt.advice) == (Blame.SOURCE, FailureKind.IMAGE_CORRUPT.advice)


def test_runs_say_what_they_hold_and_whether_they_live(connection: sa.Connection) -> None:
    register(connection, RUN)
    connection.execute(
        sa.text("INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES ('gone', 1, 'there:9'), ('over', 2, '')")
    )
    connection.execute(sa.text("UPDATE cdn_runs SET ended_at = now() WHERE run_id = 'over'"))
    see(connection, reference(shard="00"), reference(image="2", shard="3f"))
    take(connection)
    see(connection, reference(image="3", shard="01"))
    take(connection, Run("gone", "there:9"))
    runs = {run.run_id: run for run in overview(connection).runs}
    assert set(runs) == {RUN.run_id, "gone"}
    assert (runs[RUN.run_id].lives, runs[RUN.run_id].images, runs[RUN.run_id].shards) == (True, 2, ("00", "3f"))
    assert (runs["gone"].lives, runs["gone"].images, runs["gone"].shards) == (False, 1, ("01",))


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_dead(catalog: sa.Engine) -> None:
    with ExitStack() as held, snapshot(catalog) as now:
        held.enter_context(hold_run(catalog, "ending"))
        with snapshot(catalog) as later:
            later.connection.execute(sa.text("SELECT FROM cdn_runs"))  # now it stands still
            held.close()
            (run,) = look_over(later, INSTAGRAM).runs
            assert (run.run_id, run.lives) == ("ending", True)
        assert look_over(now, INSTAGRAM).runs == ()


def test_an_image_counts_once_by_its_last_outcome_of_the_day(connection: sa.Connection) -> None:
    see_many(connection, 4)
    end_all(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT)
    see(connection, *(reference(source_url("b", picture="B"), image=str(number)) for number in range(3)))
    end_all(connection, Verdict.RETRYING, FailureKind.SOURCE_ERROR, limit=1)
    see_many(connection, 2, first=4)
    end_all(connection, Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
    day = overview(connection).last_day
    assert (day.completed, day.failed) == (2, 2)  # two healed; one retries, one failed; two expired do not count


def test_outcomes_of_earlier_days_do_not_count(connection: sa.Connection) -> None:
    see_many(connection, 2)
    publish_all(connection)
    connection.execute(sa.text("UPDATE cdn_image_jobs SET completed_at = completed_at - interval '25 hours'"))
    day = overview(connection).last_day
    assert (day.completed, day.failed) == (0, 0)


def test_the_latest_hours_are_told_latest_first(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_processing_stats (date, hour, jobs_processed, jobs_failed, peak_queue_depth,
                                              worker_utilization_percent)
            SELECT (timestamp '2026-03-01 20:00' + n * interval '1 hour')::date,
                   extract(hour FROM timestamp '2026-03-01 20:00' + n * interval '1 hour'), n * 3600, n, 10 * n, n
            FROM generate_series(0, 9) n""")
    )
    hours = overview(connection).hours
    assert [line.start for line in hours] == [
        datetime(2026, 3, 2, 5, tzinfo=UTC) - timedelta(hours=back) for back in range(6)
    ]
    assert (hours[0].jobs_per_second, hours[0].success_rate) == (9.0, 1 - 9 / 32400)


def test_gone_and_expired_images_are_no_failures_of_an_hour(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_processing_stats (date, hour, jobs_processed, jobs_failed, error_categories)
            VALUES ('2026-03-01', 20, 10, 6, '{"source_gone": 5, "image_corrupt": 1}')""")
    )
    (hour,) = overview(connection).hours
    assert hour.success_rate == 0.8


def test_watermarks_tell_the_shard_that_is_furthest_behind(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, fully_scanned_at)
            VALUES ('instagram', '00', '2026-03-01 10:00Z', '2026-03-01 02:00Z'),
                   ('instagram', '01', '2026-03-01 09:00Z', NULL)""")
    )
    marks = overview(connection).watermarks
    assert marks.shards == 2
    assert marks.oldest == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert marks.last_full_scan == datetime(2026, 3, 1, 2, tzinfo=UTC)


# -- what is judged --


def test_an_empty_catalog_is_healthy_and_says_what_to_do_next(connection: sa.Connection) -> None:
    checked = health(connection)
    assert checked.health is Health.HEALTHY
    assert "no image is known yet" in checked.words


def test_a_catalog_whose_images_are_published_is_healthy(connection: sa.Connection) -> None:
    see_many(connection, 30)
    publish_all(connection)
    checked = health(connection)
    assert (checked.health, checked.findings) == (Health.HEALTHY, ())
    assert checked.words == "100.0% of 30 images are published, nothing left to do"


def an_image_was_lost(connection: sa.Connection) -> None:
    see_many(connection, 1)
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '2 hours'"))
    connection.execute(sa.text("UPDATE cdn_image_jobs SET status = 'failed', completed_at = now()"))


def an_image_was_lost_weeks_ago(connection: sa.Connection) -> None:
    an_image_was_lost(connection)
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '8 days'"))


def an_image_expires_on_hold(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=timedelta(hours=9))))
    hold_queue(connection, INSTAGRAM)


def one_in_ten_fails(connection: sa.Connection) -> None:
    see_many(connection, 30)
    end_all(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT, limit=3)


def every_image_is_retried(connection: sa.Connection) -> None:
    see_many(connection, 30)
    end_all(connection, Verdict.RETRYING, FailureKind.CONNECTION_FAILED)


def many_are_in_the_queue(connection: sa.Connection) -> None:
    see_many(connection, 1001)


def too_many_are_in_the_queue(connection: sa.Connection) -> None:
    see_many(connection, 2001)


def nobody_works_for(connection: sa.Connection, hours: int) -> None:
    see_many(connection, 1)
    connection.execute(
        sa.text("""
            UPDATE cdn_image_jobs SET created_at = now() - make_interval(hours => :hours),
                   next_attempt_at = now() - make_interval(hours => :hours)"""),
        {"hours": hours},
    )


def nobody_works_for_two_hours(connection: sa.Connection) -> None:
    nobody_works_for(connection, 2)


def nobody_works_for_a_day(connection: sa.Connection) -> None:
    nobody_works_for(connection, 24)


def a_deadline_cannot_be_kept(connection: sa.Connection) -> None:
    see_many(connection, 1)
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET next_attempt_at = now() + interval '2 hours', deadline = now() + '1 hour'")
    )


def no_shard_was_read_for_two_days(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, fully_scanned_at)
            VALUES ('instagram', '00', now(), now() - interval '2 days')""")
    )


@pytest.mark.parametrize(
    ("trouble", "worst", "first"),
    [
        (an_image_was_lost, Health.UNHEALTHY, "`cdn-pipeline explain "),
        (an_image_was_lost_weeks_ago, Health.DEGRADED, "`cdn-pipeline explain "),
        (an_image_expires_on_hold, Health.DEGRADED, "`cdn-pipeline queue restore`"),
        (one_in_ten_fails, Health.DEGRADED, "image_corrupt (3)"),
        (every_image_is_retried, Health.UNHEALTHY, FailureKind.CONNECTION_FAILED.advice),
        (many_are_in_the_queue, Health.DEGRADED, "more of them work at once"),
        (too_many_are_in_the_queue, Health.UNHEALTHY, "more of them work at once"),
        (nobody_works_for_two_hours, Health.DEGRADED, "shard 00"),
        (nobody_works_for_a_day, Health.UNHEALTHY, "daemon"),
        (a_deadline_cannot_be_kept, Health.DEGRADED, "queue hold --priority 10"),
        (no_shard_was_read_for_two_days, Health.DEGRADED, "nightly_freshness"),
    ],
)
def test_a_trouble_is_found_and_says_what_to_do_first(
    connection: sa.Connection, trouble: Callable[[sa.Connection], None], worst: Health, first: str
) -> None:
    trouble(connection)
    checked = health(connection)
    assert checked.health is worst
    (finding,) = checked.findings
    assert first in finding.first
    assert checked.words == finding.words


def test_the_worst_finding_comes_first(connection: sa.Connection) -> None:
    no_shard_was_read_for_two_days(connection)
    an_image_was_lost(connection)
    findings = health(connection).findings
    assert [finding.health for finding in findings] == [Health.UNHEALTHY, Health.DEGRADED]
    lost = connection.scalar(sa.text("SELECT id FROM cdn_image_assets"))
    assert f"explain {lost}`" in findings[0].first


def test_a_backfill_makes_nobody_wait(connection: sa.Connection) -> None:
    see_many(connection, 2001)
    connection.execute(sa.text("UPDATE cdn_image_jobs SET priority = 10, created_at = now() - interval '1 day'"))
    assert health(connection).health is Health.HEALTHY
