import uuid
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.stats import HourStats, compute_hour
from cdn_pipeline.queue.erasures import (
    Erasure,
    ErasureState,
    close_erasure,
    count_in_hand,
    deleted_objects,
    list_erasures,
    note_deleted,
    objects_to_delete,
    open_erasure,
    read_erasure,
    take_down,
)
from cdn_pipeline.queue.leases import Run, end_runs
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.references import mark_unreferenced
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.tombstones import set_owner_tombstone
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    both_sizes,
    jobs,
    only,
    outcome,
    publish,
    published,
    reference,
    register,
    see,
    source_url,
    take,
    take_one,
    visible,
)

REFERENCES = {"asset_id", "source_url", "error_message", "error_details", "updated_at"}
X = {"A", *(each.path for each in both_sizes("x"))}


def begin(connection: sa.Connection, owner: str = "owner") -> uuid.UUID:
    erasure_id = set_owner_tombstone(connection, INSTAGRAM, owner)
    open_erasure(connection, INSTAGRAM, erasure_id, owner, scope="owner", requested_by="us", reason="asked for")
    return erasure_id


def erase(connection: sa.Connection, owner: str = "owner") -> uuid.UUID:
    erasure_id = begin(connection, owner)
    take_down(connection, erasure_id)
    return erasure_id


def finish(connection: sa.Connection, erasure_id: uuid.UUID) -> Erasure:
    """As if the store had been asked to delete everything."""
    note_deleted(connection, erasure_id, deleted=objects_to_delete(connection, erasure_id), kept=[])
    close_erasure(connection, erasure_id, ErasureState.DONE)
    return read_erasure(connection, erasure_id)


def test_nothing_shows_an_erased_image_and_its_objects_are_listed(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    assert all(visible(connection))
    erasure_id = erase(connection)
    assert connection.execute(sa.text("SELECT * FROM cdn_image_urls")).all() == []
    assert set(objects_to_delete(connection, erasure_id)) == X


def test_superseded_renditions_and_their_originals_are_listed_too(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    publish(connection, "x", "A")
    see(connection, reference(source_url(picture="B")))
    publish(connection, "y", "B")
    assert {"A", "B"} <= set(objects_to_delete(connection, erase(connection)))


def test_an_ended_job_keeps_its_numbers_and_loses_what_names_the_picture(connection: sa.Connection) -> None:
    see(connection, reference())
    failed = outcome(
        take_one(connection), Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT, detail="https://x", total_ms=5
    )
    settle(connection, RUN, [failed])
    before = only(connection, "cdn_image_jobs")
    erasure_id = erase(connection)
    after = only(connection, "cdn_image_jobs")
    computed = {"host"} & set(before)  # of the URL
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= REFERENCES | computed
    assert (after["asset_id"], after["source_url"], after["error_message"]) == (None, "", None)
    assert after["error_details"] == {"erasure": str(erasure_id)}


def test_statistics_of_a_past_hour_are_the_same_after_an_erasure(connection: sa.Connection) -> None:
    for number, verdict in enumerate([Verdict.PUBLISHED, Verdict.FAILED, Verdict.RETRYING]):
        see(connection, reference(image=str(number)))
        job = take_one(connection)
        end = outcome(job, verdict, failure=FailureKind.SOURCE_ERROR, download_ms=10, bytes_in=100, total_ms=10)
        settle(connection, RUN, [published(job) if verdict is Verdict.PUBLISHED else end])
        connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = now() WHERE status = 'queued'"))
    see(connection, reference(image="in hand"))
    take_one(connection)
    connection.execute(
        sa.text("""
            UPDATE cdn_image_jobs
            SET created_at = created_at - interval '3 hours', completed_at = completed_at - interval '3 hours',
                started_at = started_at - interval '3 hours', lease_until = now() + interval '1 minute',
                busy = coalesce((
                    SELECT range_agg(tstzrange(lower(b) - interval '3 hours', upper(b) - interval '3 hours'))
                    FROM unnest(busy) AS b), '{}')
            WHERE status <> 'queued'""")
    )
    before = past_hours(connection)
    assert [hour.jobs_processed for hour in before] == [2, 0]
    assert before[1].worker_utilization_percent == 100  # one is in hand
    erase(connection)
    assert past_hours(connection) == before


def past_hours(connection: sa.Connection) -> list[HourStats]:
    hour = connection.execute(sa.text("SELECT date_trunc('hour', now(), 'UTC')")).scalar_one()
    return [compute_hour(connection, hour - timedelta(hours=ago)) for ago in (3, 2)]


def test_open_jobs_are_cancelled_and_nobody_claims_them(connection: sa.Connection) -> None:
    see(connection, reference())
    erase(connection)
    assert [(job["status"], job["completed_at"] is None) for job in jobs(connection)] == [("cancelled", False)]
    assert take(connection) == []


def test_an_open_job_cannot_lose_its_image_in_any_other_way(connection: sa.Connection) -> None:
    see(connection, reference())
    with pytest.raises(sa.exc.IntegrityError, match="open_has_image"):
        connection.execute(sa.text("DELETE FROM cdn_image_assets"))


def test_other_owners_are_left_alone(connection: sa.Connection) -> None:
    see(connection, reference(image="1"), reference(image="2", owner="other"))
    erase(connection)
    assert only(connection, "cdn_image_assets")["owner_id"] == "other"
    assert take_one(connection).owner_id == "other"


# -- runs that have an image in hand --


def test_an_outcome_of_an_erased_image_shows_nothing_and_its_objects_are_listed(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    erasure_id = erase(connection)
    assert objects_to_delete(connection, erasure_id) == []
    assert settle(connection, RUN, [published(job)]) == set()
    assert connection.execute(sa.text("SELECT * FROM cdn_image_renditions")).all() == []
    assert set(objects_to_delete(connection, erasure_id)) == X


def test_a_late_object_opens_an_erasure_again_that_was_done(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    erasure_id = erase(connection)
    assert finish(connection, erasure_id).state is ErasureState.DONE
    settle(connection, RUN, [published(job)])
    assert read_erasure(connection, erasure_id).state is ErasureState.OPEN
    assert set(objects_to_delete(connection, erasure_id)) == X


def test_an_object_that_is_put_again_after_it_was_deleted_is_to_be_deleted_again(connection: sa.Connection) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    publish(connection, "x", "A")
    see(connection, reference(source_url("b", rank=2000)))
    job = take_one(connection)
    erasure_id = erase(connection)
    note_deleted(connection, erasure_id, deleted=sorted(X), kept=[])
    settle(connection, RUN, [published(job, "x", "A")])
    assert (set(objects_to_delete(connection, erasure_id)), deleted_objects(connection, erasure_id)) == (X, [])


def test_an_erasure_cannot_be_closed_over_an_object_that_came_late(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    erasure_id = erase(connection)
    settle(connection, RUN, [published(job)])
    close_erasure(connection, erasure_id, ErasureState.DONE)
    assert read_erasure(connection, erasure_id).state is ErasureState.OPEN


@pytest.mark.parametrize("verdict", [Verdict.PUBLISHED, Verdict.RELEASED])
def test_an_image_is_in_hand_until_its_run_comes_back_with_it(connection: sa.Connection, verdict: Verdict) -> None:
    register(connection, RUN)
    see(connection, reference())
    job = take_one(connection)
    erasure_id = erase(connection)
    assert count_in_hand(connection, erasure_id) == 1
    settle(connection, RUN, [published(job) if verdict is Verdict.PUBLISHED else outcome(job, verdict)])
    assert count_in_hand(connection, erasure_id) == 0


def test_an_image_is_not_in_hand_when_its_run_has_ended_or_died(connection: sa.Connection) -> None:
    alive, dead = Run("alive", "here:1"), Run("dead", "here:2")
    register(connection, alive)
    connection.execute(sa.text("INSERT INTO cdn_runs (run_id, lock_key, worker_id) VALUES ('dead', 1, '')"))
    see(connection, reference(image="1"))
    take_one(connection, alive)
    see(connection, reference(image="2"))
    take_one(connection, dead)
    erasure_id = erase(connection)
    assert count_in_hand(connection, erasure_id) == 1
    end_runs(connection, [alive.run_id])
    assert count_in_hand(connection, erasure_id) == 0


def test_outcomes_of_living_images_that_are_refused_are_nobodys_business(connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    erasure_id = erase(connection, "other")
    settle(connection, Run("another run", "here:9"), [published(job)])
    assert objects_to_delete(connection, erasure_id) == []


# -- the audit --


def test_one_that_is_done_keeps_counts_and_no_list(connection: sa.Connection) -> None:
    see(connection, reference())
    publish(connection)
    erasure = finish(connection, erase(connection))
    counts = (erasure.images, erasure.renditions, erasure.originals, erasure.kept)
    assert (erasure.state, counts, erasure.requested_by) == (ErasureState.DONE, (1, 2, 1, 0), "us")
    assert connection.execute(sa.text("SELECT * FROM cdn_erasure_objects")).all() == []


def test_unfinished_erasures_can_be_listed(connection: sa.Connection) -> None:
    done, pending, half = (erase(connection, owner) for owner in ("done", "pending", "open"))
    close_erasure(connection, done, ErasureState.DONE)
    close_erasure(connection, pending, ErasureState.PURGE_PENDING, problem="no token")
    assert [each.id for each in list_erasures(connection, INSTAGRAM)] == [half, pending, done]
    assert [each.id for each in list_erasures(connection, INSTAGRAM, unfinished=True)] == [half, pending]


# -- what others refer to --

OWNERS = ("a", "b", "c")
images_of = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.sampled_from(["A", "B", "C"]), st.booleans()), min_size=1, max_size=6
)


def originals_of_rows(connection: sa.Connection) -> set[str]:
    query = """SELECT original_sha256 FROM cdn_image_assets WHERE original_sha256 IS NOT NULL
               UNION SELECT original_sha256 FROM cdn_image_renditions"""
    return set(connection.scalars(sa.text(query)))


@hypothesis_settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(pictures=images_of, erased=st.sampled_from(OWNERS))
def test_what_goes_is_what_only_the_owner_refers_to(
    connection: sa.Connection, pictures: list[tuple[str, str, bool]], erased: str
) -> None:
    """Images (owner, picture, whether another picture took its place since)."""
    connection.execute(
        sa.text("TRUNCATE cdn_image_assets, cdn_image_jobs, cdn_tombstones, cdn_removed_objects CASCADE")
    )
    for number, (owner, picture, replaced) in enumerate(pictures):
        versions: list[Any] = [(picture, timedelta(hours=1)), *([(f"{number}", timedelta())] if replaced else [])]
        for sha256, age in versions:
            see(connection, reference(source_url(picture=sha256), image=str(number), owner=owner, age=age))
            publish(connection, f"{number} {sha256}", sha256)
    before = originals_of_rows(connection)
    erasure_id = erase(connection, erased)
    listed = objects_to_delete(connection, erasure_id)
    sha256s = [each for each in listed if not each.startswith("/")]
    going = mark_unreferenced(connection, originals=sha256s)
    remaining = originals_of_rows(connection)
    assert going == before - remaining
    assert connection.scalar(sa.text("SELECT count(*) FROM cdn_image_assets WHERE owner_id = :o"), {"o": erased}) == 0
