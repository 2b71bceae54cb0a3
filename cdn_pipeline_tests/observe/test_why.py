"""Every state of an image has its sentence, and "due" is said exactly when a run would claim it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.snapshot import Snapshot
from cdn_pipeline.observe.story import ImageStory, tell_stories
from cdn_pipeline.observe.why import QueueState, Why, why
from cdn_pipeline.queue.holds import hold_queue, restore_queue
from cdn_pipeline.queue.leases import Run, dead_runs
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.discovery import ImageReference
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    due_now,
    outcome,
    publish,
    published,
    reference,
    register,
    see,
    session,
    source_url,
    take,
    take_one,
)

HOUR = timedelta(hours=1)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def stories(connection: sa.Connection) -> list[ImageStory]:
    ids = connection.scalars(sa.text("SELECT id FROM cdn_image_assets ORDER BY source_id")).all()
    now = Snapshot(connection, frozenset(dead_runs(connection)))  # some tests commit nothing
    return tell_stories(now, INSTAGRAM, ids)


def reason(connection: sa.Connection) -> Why:
    """Why the only image is or is not due."""
    (story,) = stories(connection)
    return why(INSTAGRAM, story)


def end(connection: sa.Connection, verdict: Verdict, failure: FailureKind | None = None, **more: Any) -> None:
    """The only due job is tried and ends so."""
    settle(connection, RUN, [outcome(take_one(connection), verdict, failure=failure, **more)])


def test_a_new_image_is_due(connection: sa.Connection) -> None:
    see(connection, reference(shard="3f"))
    found = reason(connection)
    assert found.state is QueueState.DUE
    assert found.words.startswith("Due since ")
    assert found.words.endswith("the next run of shard 3f takes it up at download, priority 2.")


def test_a_failed_attempt_says_when_the_next_one_is(connection: sa.Connection) -> None:
    see(connection, reference())
    end(connection, Verdict.RETRYING, FailureKind.CONNECTION_FAILED, retry_in_seconds=3 * 3600 + 60)
    found = reason(connection)
    assert found.state is QueueState.RETRY_LATER
    assert found.words.startswith("Next attempt ")
    assert found.words.endswith("(in 3 h): retry 1 after connection_failed.")


def test_an_image_in_hand_names_its_run(connection: sa.Connection) -> None:
    register(connection, RUN)
    see(connection, reference())
    take_one(connection)
    found = reason(connection)
    assert found.state is QueueState.IN_HAND
    assert found.words.startswith("In hand of run run-1 on here:1, whose lease is good until ")


def test_an_image_whose_run_is_gone_is_taken_back_by_the_next(connection: sa.Connection) -> None:
    see(connection, reference())
    take_one(connection, Run("run-9", "there:9"))
    found = reason(connection)
    assert found.state is QueueState.ABANDONED
    assert "run run-9 on there:9, which is gone" in found.words


def test_a_run_that_stopped_renewing_its_lease_is_gone_as_well(connection: sa.Connection) -> None:
    register(connection, RUN)
    see(connection, reference())
    take_one(connection)
    connection.execute(sa.text("UPDATE cdn_image_jobs SET lease_until = now() - interval '1 second'"))
    assert reason(connection).state is QueueState.ABANDONED


def test_an_image_behind_its_host_says_since_when_and_until_when(connection: sa.Connection) -> None:
    see(connection, reference())
    shut(connection)
    found = reason(connection)
    assert (found.state, found.due) == (QueueState.BEHIND_HOST, False)
    assert found.words.startswith("Behind its host: cdn.example is left alone since ")
    assert found.words.endswith("(in 59 min), by one image at first.")


def test_a_retry_that_comes_after_its_host_is_asked_again_is_a_retry(connection: sa.Connection) -> None:
    see(connection, reference())
    end(connection, Verdict.RETRYING, FailureKind.RATE_LIMITED, retry_in_seconds=2 * 3600)
    shut(connection)
    assert reason(connection).state is QueueState.RETRY_LATER


def test_a_held_image_says_how_to_let_it_go(connection: sa.Connection) -> None:
    see(connection, reference())
    hold_queue(connection, INSTAGRAM)
    found = reason(connection)
    assert found.state is QueueState.ON_HOLD
    assert found.words.startswith("On hold since ")
    assert "`cdn-pipeline queue restore`" in found.words


def roll_out(connection: sa.Connection, recipe: str) -> None:
    """The only image is completed, and a job opens that rolls the recipe out to it."""
    see(connection, reference())
    publish(connection)
    connection.execute(
        sa.text("""
            WITH image AS (UPDATE cdn_image_assets SET processing_status = 'pending' RETURNING *)
            INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, priority, stage, source_url, rollout)
            SELECT id, collection, shard, 'update', 10, 'encode', source_url, :recipe FROM image"""),
        {"recipe": recipe},
    )


def test_a_job_of_a_rollout_names_its_recipe(connection: sa.Connection) -> None:
    roll_out(connection, "avif_thumbnails")
    found = reason(connection)
    assert found.state is QueueState.DUE
    assert found.words.endswith("takes it up at encode, priority 10, for the rollout of avif_thumbnails.")


def test_a_job_of_a_paused_rollout_says_how_to_resume_it(connection: sa.Connection) -> None:
    roll_out(connection, "avif_thumbnails")
    hold_queue(connection, INSTAGRAM)
    connection.execute(sa.text("INSERT INTO cdn_rollouts VALUES ('instagram', 'avif_thumbnails', 1, now(), now())"))
    found = reason(connection)
    assert found.state is QueueState.ON_HOLD
    assert "`cdn-pipeline rollout avif_thumbnails --resume`" in found.words


def test_a_recipe_of_another_version_of_the_code_is_not_due_for_this_one(connection: sa.Connection) -> None:
    roll_out(connection, "jpegxl_thumbnails")
    found = reason(connection)
    assert found.state is QueueState.UNKNOWN_RECIPE
    assert "jpegxl_thumbnails" in found.words
    assert take(connection) == []


def test_a_failed_rollout_leaves_the_image_completed(connection: sa.Connection) -> None:
    roll_out(connection, "avif_thumbnails")
    connection.execute(
        sa.text("""
            UPDATE cdn_image_jobs SET status = 'failed', failure_kind = 'out_of_memory', error_message = 'too much'
            WHERE rollout IS NOT NULL""")
    )
    connection.execute(sa.text("UPDATE cdn_image_assets SET processing_status = 'completed'"))
    found = reason(connection)
    assert found.state is QueueState.COMPLETED
    assert "the rollout of avif_thumbnails failed: out_of_memory (too much). Advice: " in found.words


def test_an_image_whose_url_died_waits_for_another(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=-HOUR / 2)))
    end(connection, Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
    found = reason(connection)
    assert found.state is QueueState.WAITING
    assert found.words.startswith("Waits for a fresh URL: the present one expired ")
    assert found.words.endswith(FailureKind.SOURCE_URL_EXPIRED.advice)


def test_an_image_that_arrived_dead_waits_for_a_fresh_url(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=-timedelta(days=3))))
    found = reason(connection)
    assert found.state is QueueState.WAITING
    assert "(3 d ago)" in found.words


def test_an_image_whose_url_was_refused_says_what_it_gave(connection: sa.Connection) -> None:
    see(connection, reference())
    end(connection, Verdict.WAITING, FailureKind.SIGNATURE_MISMATCH, detail="Bad URL hash")
    assert reason(connection).words == (
        "Waits for a fresh URL: the present one gave signature_mismatch (Bad URL hash). "
        f"Advice: {FailureKind.SIGNATURE_MISMATCH.advice}"
    )


def test_an_image_that_waits_says_when_there_is_nobody_to_ask_for_a_url(connection: sa.Connection) -> None:
    see(connection, reference(source_url(lives=-timedelta(days=3))))
    (story,) = stories(connection)
    assert why(INSTAGRAM, story, has_provider=False).words.endswith(
        "No provider configured: only its source row can bring one."
    )
    assert "rovider" not in why(INSTAGRAM, story, has_provider=True).words


def test_an_image_whose_source_row_is_gone_will_get_no_fresh_url(connection: sa.Connection) -> None:
    see(connection, reference())
    end(connection, Verdict.WAITING, FailureKind.SOURCE_URL_404)
    connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now() - interval '3 days'"))
    found = reason(connection).words
    assert "Its source row was missing " in found
    assert found.endswith("(3 d ago).")


def test_a_failed_image_says_why_and_what_to_do(connection: sa.Connection) -> None:
    see(connection, reference())
    end(connection, Verdict.FAILED, FailureKind.IMAGE_CORRUPT, detail="broken data stream")
    found = reason(connection)
    assert found.state is QueueState.FAILED
    assert found.words == (
        f"Failed for good: image_corrupt (broken data stream). Advice: {FailureKind.IMAGE_CORRUPT.advice}"
    )


def test_a_completed_image_has_nothing_to_do(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    found = reason(connection)
    assert found.state is QueueState.COMPLETED
    assert found.words.startswith("Completed ")
    assert found.words.endswith(": nothing to do.")


# -- due is what would be claimed --

Step = Callable[[sa.Connection], object]


def seen(number: str, name: str, picture: str) -> Step:
    return partial(_see, reference(source_url(name, picture=picture), image=number))


def _see(found: ImageReference, connection: sa.Connection) -> None:
    see(connection, found)


def tried(place: int, verdict: Verdict, failure: FailureKind | None) -> Step:
    return partial(_try, place, verdict, failure)


def _try(place: int, verdict: Verdict, failure: FailureKind | None, connection: sa.Connection) -> None:
    """One of the due jobs ends so, the others are released."""
    jobs = take(connection)
    outcomes = [outcome(job, Verdict.RELEASED, job.stage) for job in jobs]
    if place < len(jobs):
        stage = Stage.ENCODE if verdict is Verdict.ADVANCED else jobs[place].stage
        ended = outcome(jobs[place], verdict, stage, failure=failure, retry_in_seconds=3600 if failure else 0)
        outcomes[place] = published(jobs[place]) if verdict is Verdict.PUBLISHED else ended
    settle(connection, RUN, outcomes)


def taken(connection: sa.Connection) -> None:
    take(connection)


def held(connection: sa.Connection) -> None:
    hold_queue(connection, INSTAGRAM)


def restored(connection: sa.Connection) -> None:
    restore_queue(connection, INSTAGRAM)


def shut(connection: sa.Connection) -> None:
    """The breaker of the images' host is open for an hour."""
    connection.execute(
        sa.text("INSERT INTO cdn_hosts (host, opened_at, retry_at) VALUES ('cdn.example', now(), now() + :hour)"),
        {"hour": HOUR},
    )


def answering(connection: sa.Connection) -> None:
    connection.execute(sa.text("DELETE FROM cdn_hosts"))


def shut_anew(connection: sa.Connection) -> None:
    answering(connection)
    shut(connection)


def given_a_recipe_of_the_future(connection: sa.Connection) -> None:
    connection.execute(
        sa.text("UPDATE cdn_image_jobs SET rollout = 'future' WHERE status = 'queued' AND stage = 'encode'")
    )


_ENDS = [
    (Verdict.PUBLISHED, None),
    (Verdict.UNCHANGED, None),
    (Verdict.ADVANCED, None),
    (Verdict.RETRYING, FailureKind.SOURCE_ERROR),
    (Verdict.WAITING, FailureKind.SOURCE_FORBIDDEN),
    (Verdict.FAILED, FailureKind.IMAGE_CORRUPT),
]
_STEPS = st.one_of(
    st.builds(seen, st.sampled_from("1234"), st.sampled_from("ab"), st.sampled_from("AB")),
    st.builds(lambda place, end: tried(place, *end), st.integers(0, 3), st.sampled_from(_ENDS)),
    st.sampled_from([taken, held, restored, due_now, shut_anew, answering, given_a_recipe_of_the_future]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_STEPS, max_size=12))
def test_due_is_said_of_exactly_what_would_be_claimed(catalog: sa.Engine, steps: list[Step]) -> None:
    with catalog.connect() as connection, connection.begin() as history:
        see(connection, reference(image="1"), reference(image="2"))
        for step in steps:
            step(connection)
        said = {story.image_id for story in stories(connection) if why(INSTAGRAM, story).due}
        assert said == {job.asset_id for job in take(connection)}
        history.rollback()
