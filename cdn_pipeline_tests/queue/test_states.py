import random
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import BACKFILL_PRIORITY, INSTAGRAM
from cdn_pipeline.failures import FailureKind, Remedy
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.queue.leases import Run, release_dead_leases
from cdn_pipeline.queue.outcomes import EFFECTS, Outcome, Verdict
from cdn_pipeline.queue.reopen import open_jobs_again
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import (
    IMAGE_TRANSITIONS,
    JOB_TRANSITIONS,
    STATUS_IN_HAND,
    ImageStatus,
    JobStatus,
    Stage,
)
from cdn_pipeline_tests.queue.catalogs import (
    due_now,
    original_of,
    outcome,
    publish,
    published,
    reference,
    refuse_illegal_transitions,
    rolled_out,
    see,
    session,
    source_url,
    take,
)
from cdn_pipeline_tests.queue.test_rollout_jobs import roll_out

RUNS = [Run(f"run-{number}", "here") for number in range(3)]


def test_every_state_has_its_transitions() -> None:
    assert set(IMAGE_TRANSITIONS) == set(ImageStatus)
    assert set(JOB_TRANSITIONS) == set(JobStatus)
    assert set(STATUS_IN_HAND) == set(Stage)


@pytest.mark.parametrize("verdict", Verdict)
def test_the_effect_of_every_verdict_is_an_edge(verdict: Verdict) -> None:
    job_status, image_status = EFFECTS[verdict]
    assert job_status in JOB_TRANSITIONS[JobStatus.PROCESSING]
    for in_hand in STATUS_IN_HAND.values():
        assert in_hand in IMAGE_TRANSITIONS[ImageStatus.PENDING]
        assert image_status in IMAGE_TRANSITIONS[in_hand]
        assert ImageStatus.PENDING in IMAGE_TRANSITIONS[in_hand]  # when it is superseded or released


def test_jobs_that_have_ended_stay_as_they_are() -> None:
    assert not any(JOB_TRANSITIONS[end] for end in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED))


@pytest.mark.parametrize("table", ["cdn_image_assets", "cdn_image_jobs"])
def test_the_guard_of_the_next_test_refuses_an_illegal_edge(catalog: sa.Engine, table: str) -> None:
    refuse_illegal_transitions(catalog)
    with session(catalog) as connection:
        see(connection, reference())
        publish(connection)
        column, status = ("processing_status", "downloading") if table == "cdn_image_assets" else ("status", "queued")
        with pytest.raises(sa.exc.DBAPIError, match="illegal transition"):
            connection.execute(sa.text(f"UPDATE {table} SET {column} = :status"), {"status": status})


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_only_legal_edges_are_written(catalog: sa.Engine, seed: int) -> None:
    """A random walk over everything that writes a status; after every step the catalog is coherent."""
    refuse_illegal_transitions(catalog)
    chance = random.Random(seed)
    with session(catalog) as connection:
        for step in range(120):
            _something(connection, chance, step)
            assert _incoherent(connection) == []
        assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_jobs WHERE status = 'completed'"))


def _something(connection: sa.Connection, chance: random.Random, step: int) -> None:
    match chance.randrange(9):
        case 0 | 1 | 2:
            _see(connection, chance, step, image=str(chance.randrange(4)))
        case 3 | 4 | 5:
            run = chance.choice(RUNS)
            for job in take(connection, run):
                if chance.random() < 0.5:
                    _see(connection, chance, step, image=job.source_id)
                if chance.random() < 0.5:  # else it stays in hand
                    settle(connection, run, [_some_outcome(job, chance)])
        case 6:
            expired = "status = 'processing' AND run_id <> 'run-0'"
            connection.execute(sa.text(f"UPDATE cdn_image_jobs SET lease_until = now() WHERE {expired}"))
            release_dead_leases(connection, ["00"])
        case 7:
            due_now(connection)
            from_originals = chance.random() < 0.5
            open_jobs_again(
                connection, INSTAGRAM, ["00"], from_originals=from_originals, force=True, owner_ids=None, limit=None
            )
        case 8:
            roll_out(connection, paused=chance.random() < 0.2)
            hold_or_restore = hold_queue if chance.random() < 0.3 else restore_queue
            hold_or_restore(connection, INSTAGRAM)


def _see(connection: sa.Connection, chance: random.Random, step: int, image: str) -> None:
    lives = timedelta(days=chance.choice([-1, 3, 3, 3]), minutes=step)
    url = source_url(str(step), picture=chance.choice("AB"), rank=chance.choice([150, 1080]), lives=lives)
    see(connection, reference(url, image=image, age=timedelta(days=1) - timedelta(minutes=step)))


def _some_outcome(job: DueJob, chance: random.Random) -> Outcome:
    verdict = chance.choice(list(Verdict))
    kinds = [kind for kind in FailureKind if (kind.remedy is Remedy.PERMANENT) == (verdict is Verdict.FAILED)]
    match verdict:
        case Verdict.PUBLISHED | Verdict.ADVANCED if job.recipe != INSTAGRAM.recipe:
            return replace(rolled_out(job, job.identity, job.original_sha256 or ""), verdict=verdict)
        case Verdict.PUBLISHED | Verdict.ADVANCED:
            return replace(published(job, job.identity, job.identity), verdict=verdict)
        case Verdict.UNCHANGED:
            return outcome(job, verdict, original=original_of(job, job.identity))
        case _:
            return outcome(job, verdict, job.stage, failure=chance.choice(kinds))


def _incoherent(connection: sa.Connection) -> list[str]:
    """What must never be: each query finds the rows that break one rule."""
    rules = {
        "an image is in hand exactly while its job is": """
            SELECT a.id FROM cdn_image_assets a
            LEFT JOIN cdn_image_jobs j ON j.asset_id = a.id AND j.status = 'processing'
            WHERE (j.id IS NOT NULL) <> (a.processing_status IN ('downloading', 'processing', 'uploading'))""",
        "completed and failed images have no open job": """
            SELECT a.id FROM cdn_image_assets a JOIN cdn_image_jobs j ON j.asset_id = a.id
            WHERE a.processing_status IN ('completed', 'failed') AND j.status IN ('queued', 'processing')""",
        "a completed image has the picture that its URL shows": """
            SELECT id FROM cdn_image_assets WHERE processing_status = 'completed' AND original_identity <> identity""",
        "a queued job has its image's URL": """
            SELECT a.id FROM cdn_image_assets a JOIN cdn_image_jobs j ON j.asset_id = a.id
            WHERE j.status = 'queued'
              AND (j.source_url, j.deadline) IS DISTINCT FROM (a.source_url, a.url_expires_at)""",
        "a queued job starts from the original only if that is of the image's picture": """
            SELECT a.id FROM cdn_image_assets a JOIN cdn_image_jobs j ON j.asset_id = a.id
            WHERE j.status = 'queued' AND j.stage <> 'download' AND a.original_identity <> a.identity""",
        "a job has a lease exactly while it is in hand": """
            SELECT id FROM cdn_image_jobs WHERE (status = 'processing') <> (lease_until IS NOT NULL)
                                             OR status = 'processing' AND run_id IS NULL""",
        "a job that downloads is of the collection's own recipe and not behind re-encodings": f"""
            SELECT id FROM cdn_image_jobs
            WHERE status IN ('queued', 'processing') AND stage = 'download'
              AND (rollout IS NOT NULL OR priority > {BACKFILL_PRIORITY})""",
        "a rollout is of an image that was completed before": """
            SELECT a.id FROM cdn_image_assets a JOIN cdn_image_jobs j ON j.asset_id = a.id
            WHERE j.rollout IS NOT NULL AND a.processing_completed_at IS NULL""",
        "what is visible beside each other shows one picture": """
            SELECT asset_id FROM cdn_image_renditions WHERE state = 'current'
            GROUP BY asset_id HAVING count(DISTINCT original_sha256) > 1""",
        "an image that waits without a job knows why": """
            SELECT a.id FROM cdn_image_assets a
            WHERE processing_status = 'pending' AND failure_kind IS NULL AND NOT EXISTS (
                SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND j.status IN ('queued', 'processing'))""",
    }
    return [rule for rule, query in rules.items() if connection.execute(sa.text(query)).first()]
