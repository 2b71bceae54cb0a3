"""`status` fits on a screen, and its exit status says whether all is well."""

import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import RUN, outcome, publish, reference, register, see, source_url, take


def fill(connection: sa.Connection) -> None:
    """A catalog with a little of everything: published, failed, waiting, retried, in hand, due, a rollout, hours."""
    register(connection, RUN)
    see(connection, reference())
    publish(connection)
    see(connection, *(reference(image=f"failing {number}", shard="01") for number in range(5)))
    ends = [
        (Verdict.FAILED, FailureKind.IMAGE_CORRUPT),
        (Verdict.FAILED, FailureKind.SOURCE_GONE),
        (Verdict.WAITING, FailureKind.SIGNATURE_MISMATCH),
        (Verdict.WAITING, FailureKind.BLOCKED_ADDRESS),
        (Verdict.RETRYING, FailureKind.CONNECTION_FAILED),
    ]
    settle(
        connection,
        RUN,
        [
            outcome(job, verdict, failure=failure, retry_in_seconds=7000)
            for job, (verdict, failure) in zip(take(connection), ends, strict=True)
        ],
    )
    see(connection, reference(image="in hand", shard="02"))
    take(connection)
    see(connection, *(reference(image=f"due {n}", source_type="post_thumbnail", shard="03") for n in range(12)))
    connection.execute(
        sa.text("""
            INSERT INTO cdn_processing_stats (date, hour, jobs_processed, jobs_failed, peak_queue_depth,
                                              worker_utilization_percent)
            SELECT '2026-03-01', n, 10000 + n, n, 20000, 97 FROM generate_series(0, 9) n""")
    )
    connection.execute(sa.text("INSERT INTO cdn_rollouts VALUES ('instagram', 'avif_thumbnails', 1, now(), NULL)"))
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, fully_scanned_at)
            SELECT 'instagram', lpad(to_hex(n), 2, '0'), now(), now() FROM generate_series(0, 63) n""")
    )


def test_a_catalog_in_order_is_healthy(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    result = invoke("status")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Healthy: 100.0% of 1 images are published")
    assert "0 images lost, 0 arrived dead" in result.output


def test_refreshes_that_users_wait_for_are_told(invoke: Invoke, connection: sa.Connection) -> None:
    assert "refreshes" not in invoke("status").output
    connection.execute(
        sa.text("""
            INSERT INTO cdn_refreshes (collection, owner_id, shard, requested_at)
            VALUES ('instagram', 'a', '00', now() - interval '3 minutes'),
                   ('instagram', 'b', '00', now() - interval '2 hours')""")
    )
    result = invoke("status")
    assert result.exit_code == 1
    assert "1 profile that users want fetched again, the oldest for 3 min" in result.output
    assert "no run came to 1 in the last hour" in result.output


def test_an_erasure_that_is_not_finished_is_told(invoke: Invoke, connection: sa.Connection) -> None:
    assert "erasures" not in invoke("status").output
    connection.execute(
        sa.text("""
            INSERT INTO cdn_erasures (collection, owner_id, scope, requested_by, reason, state)
            VALUES ('instagram', 'owner', 'owner', 'us', 'a ticket', 'purge_pending')""")
    )
    assert "1 not finished: `cdn-pipeline erase` shows why" in invoke("status").output
    assert json.loads(invoke("status", "--json").output)["unfinished_erasures"] == 1


def test_an_empty_catalog_says_what_to_do(invoke: Invoke) -> None:
    result = invoke("status")
    assert result.exit_code == 0, result.output
    assert "publish_images" in result.output
    assert "The queue is empty" in result.output


def test_a_lost_image_is_told_first_and_is_no_success(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(sa.text("UPDATE cdn_image_assets SET url_expires_at = now() - interval '3 hours'"))
    result = invoke("status")
    assert result.exit_code == 1
    headline, first = result.output.splitlines()[:2]
    assert headline.startswith("Unhealthy: ")
    lost = connection.scalar(sa.text("SELECT id FROM cdn_image_assets"))
    assert first.startswith(f"→ `cdn-pipeline explain {lost}`")
    assert "1 image lost" in result.output


def test_everything_is_at_a_glance(invoke: Invoke, connection: sa.Connection) -> None:
    fill(connection)
    told = invoke("status").output
    for words in (
        "19: 15 pending",
        "published    1 (5.2%)",
        "1 image completed, 3 failed or still retrying",
        "64 of 64 shards read",
        "avif_thumbnails v1: 0 of 1 done",
        "signature_mismatch",
        FailureKind.SIGNATURE_MISMATCH.advice,
        "03-01 09:00",
        RUN.run_id,
    ):
        assert words in told


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_it_fits_on_one_screen(invoke: Invoke, connection: sa.Connection, columns: int) -> None:
    fill(connection)
    lines = invoke("status", columns=columns).output.splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) <= (50 if columns >= 100 else 60)


def test_programs_get_the_same_as_json(invoke: Invoke, connection: sa.Connection) -> None:
    fill(connection)
    result = invoke("status", "--json", columns=40)
    facts = json.loads(result.output)
    assert result.exit_code == (0 if facts["health"] == "healthy" else 1)
    assert facts["images"]["by_status"]["failed"] == 2
    assert facts["watch"]["lost"] == 0
    assert [line["priority"] for line in facts["queue"]] == [2, 4]
    assert facts["queue"][1]["due"] == 12
    assert facts["oldest_due"]["age"] < timedelta(hours=1).total_seconds()
    assert facts["rollouts"][0]["recipe"] == "avif_thumbnails"
    assert facts["runs"][0]["lives"] is True


def test_images_that_wait_for_a_url_are_told_with_who_is_asked_for_one(
    invoke: Invoke, connection: sa.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    see(connection, reference(source_url(lives=timedelta(days=-3))))
    assert "1 image waiting for one; no provider configured" in invoke("status").output
    monkeypatch.setenv("DECODO_AUTH_TOKEN", "token")
    connection.execute(
        sa.text("INSERT INTO cdn_provider_usage (provider, day, requests, answered) VALUES ('decodo', now(), 1200, 7)")
    )
    assert "1 image waiting for one; today 7 of 1,200 requests answered" in invoke("status").output
    connection.execute(sa.text("UPDATE cdn_provider_usage SET refused = 'Decodo refuses our credentials'"))
    assert "Decodo refuses our credentials" in invoke("status").output
    fresh_urls = json.loads(invoke("status", "--json").output)["fresh_urls"]
    assert (fresh_urls["waiting"], fresh_urls["asked_today"], fresh_urls["answered_today"]) == (1, 1200, 7)


def test_a_host_that_is_left_alone_is_shown_with_what_waits_for_it(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(
        sa.text("""
            INSERT INTO cdn_hosts (host, failures, failure_kind, opened_at, retry_at)
            VALUES ('cdn.example', 8, 'download_timeout', now() - interval '6 minutes', now() + interval '1 hour')""")
    )
    result = invoke("status")
    assert result.exit_code == 1
    assert result.output.startswith("Degraded: hosts with an open breaker: 1, 1 of them for more than 5 min")
    [line] = [line for line in result.output.splitlines() if line.strip().startswith("cdn.example ") and "ago" in line]
    assert line.split() == ["cdn.example", "6", "min", "ago", "in", "59", "min", "download_timeout", "1"]
