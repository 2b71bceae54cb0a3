"""`retry` tries again exactly what should be, and says of each image what happened and what comes next."""

import json
import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.unattended import DUE_SENSOR
from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.heartbeats import beat
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import JobType, Stage
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    RUN,
    open_jobs,
    original_of,
    outcome,
    publish,
    reference,
    register,
    see,
    source_url,
    take_one,
)


@pytest.fixture(autouse=True)
def _run(connection: sa.Connection) -> None:
    register(connection, RUN)


def fail(
    connection: sa.Connection,
    image: str,
    verdict: Verdict,
    failure: FailureKind,
    *,
    shard: str = "00",
    **more: Any,
) -> uuid.UUID:
    """An image whose only attempt ended so; its id."""
    see(connection, reference(source_url(lives=timedelta(days=1)), image=image, shard=shard, owner=f"owner {image}"))
    job = take_one(connection)
    settle(connection, RUN, [outcome(job, verdict, failure=failure, **more)])
    return job.asset_id


def gone(connection: sa.Connection, image: str = "gone", shard: str = "00") -> uuid.UUID:
    return fail(connection, image, Verdict.FAILED, FailureKind.SOURCE_GONE, shard=shard)


def later(connection: sa.Connection, image: str = "later", shard: str = "00") -> uuid.UUID:
    kind = FailureKind.SOURCE_ERROR
    return fail(connection, image, Verdict.RETRYING, kind, shard=shard, retry_in_seconds=7000)


def expire(connection: sa.Connection, image_id: uuid.UUID) -> None:
    query = "UPDATE cdn_image_assets SET url_expires_at = now() - interval '1 hour' WHERE id = :id"
    connection.execute(sa.text(query), {"id": image_id})


def test_a_named_image_is_due_again_and_the_next_step_is_told(invoke: Invoke, connection: sa.Connection) -> None:
    image_id = gone(connection, shard="3f")
    result = invoke("retry", str(image_id))
    assert result.exit_code == 0, result.output
    assert "a new job is due" in result.output
    assert "source_gone" in result.output
    assert """--tags '{"dagster/partition": "3f"}'""" in result.output
    job = take_one(connection)
    assert (job.asset_id, job.job_type, job.priority) == (image_id, JobType.RETRY, 2)


def test_an_id_is_whole_in_80_columns(invoke: Invoke, connection: sa.Connection) -> None:
    image = gone(connection)
    output = invoke("retry", str(image), columns=80).output
    assert any(str(image) in line and len(line) <= 80 for line in output.splitlines())


def test_anything_that_names_images_will_do(invoke: Invoke, connection: sa.Connection) -> None:
    gone(connection, "1")
    gone(connection, "2")
    assert invoke("retry", "owner 1", "https://cdn.example/A-a.jpg").exit_code == 0  # the URL is that of both
    assert len(open_jobs(connection)) == 2


def test_what_waits_for_its_next_attempt_is_due_now(invoke: Invoke, connection: sa.Connection) -> None:
    image_id = later(connection)
    assert "its next attempt is due now" in invoke("retry", str(image_id)).output
    assert take_one(connection).asset_id == image_id


def test_published_open_and_waiting_images_are_left_as_they_are(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference(image="published", owner="owner published"))
    publish(connection)
    dead = fail(connection, "dead", Verdict.WAITING, FailureKind.SOURCE_URL_EXPIRED)
    expire(connection, dead)
    see(connection, reference(image="due", owner="owner due"))
    before = open_jobs(connection)
    result = invoke("retry", "owner published", "owner dead", "owner due")
    for words in ("published: nothing to do", "waits for a fresh URL", "due or in hand already"):
        assert f"1 image: {words}" in result.output
    assert open_jobs(connection) == before
    assert "dagster job execute" not in result.output


def test_an_image_whose_jobs_are_not_kept_any_more_is_tried_again_all_the_same(
    invoke: Invoke, connection: sa.Connection
) -> None:
    from_source, from_original = gone(connection, "1"), gone(connection, "2")
    connection.execute(sa.text("DELETE FROM cdn_image_jobs"))
    connection.execute(
        sa.text("UPDATE cdn_image_assets SET original_identity = identity, original_sha256 = 'x' WHERE id = :id"),
        {"id": from_original},
    )
    assert "2 images: a new job is due" in invoke("retry", str(from_source), str(from_original)).output
    assert {job["asset_id"]: job["stage"] for job in open_jobs(connection)} == {
        from_source: Stage.DOWNLOAD,
        from_original: Stage.ENCODE,
    }


def test_a_picture_that_did_not_decode_is_tried_from_its_original(invoke: Invoke, connection: sa.Connection) -> None:
    see(connection, reference())
    job = take_one(connection)
    corrupt = FailureKind.IMAGE_CORRUPT
    original = original_of(job)
    settle(connection, RUN, [outcome(job, Verdict.FAILED, Stage.ENCODE, failure=corrupt, original=original)])
    invoke("retry", str(job.asset_id))
    assert take_one(connection).stage is Stage.ENCODE


def test_a_dry_run_tells_the_same_and_changes_nothing(invoke: Invoke, connection: sa.Connection) -> None:
    image_id = gone(connection)
    before = connection.execute(sa.text("SELECT * FROM cdn_image_assets")).all()
    result = invoke("retry", str(image_id), "--dry-run")
    assert "nothing was changed" in result.output
    assert "1 image: a new job is due" in result.output
    assert open_jobs(connection) == []
    assert connection.execute(sa.text("SELECT * FROM cdn_image_assets")).all() == before
    assert latest_actions(connection, 1) == []


@pytest.mark.parametrize(
    ("options", "images"),
    [
        (("--all-failed",), {"a", "b", "c"}),
        (("--kind", "source_gone"), {"a", "c"}),
        (("--shard", "01"), {"b", "c"}),
        (("--kind", "source_gone", "--shard", "01"), {"c"}),
        (("--shard", "02"), set()),
    ],
)
def test_kinds_and_shards_choose_among_what_has_failed(
    invoke: Invoke, connection: sa.Connection, options: tuple[str, ...], images: set[str]
) -> None:
    ids = {"a": gone(connection, "a", "00"), "b": later(connection, "b", "01"), "c": gone(connection, "c", "01")}
    see(connection, reference(image="due", shard="01"))
    document = json.loads(invoke("retry", *options, "--json").output)
    assert {each["image_id"] for each in document["images"]} == {str(ids[name]) for name in images}
    assert {each["answer"] for each in document["images"]} <= {"reopened", "hurried"}


def test_who_did_it_and_to_what_is_in_the_audit(invoke: Invoke, connection: sa.Connection) -> None:
    image_id = gone(connection)
    invoke("retry", str(image_id))
    (entry,) = latest_actions(connection, 9)
    assert (entry.action, entry.affected, entry.details) == ("retry", 1, {"images": [str(image_id)], "asked": 1})


def test_an_unknown_id_is_told_and_the_others_are_tried(invoke: Invoke, connection: sa.Connection) -> None:
    image_id = gone(connection)
    result = invoke("retry", "[nobody]", str(image_id))
    assert result.exit_code == 1
    assert "No image is known by [nobody]" in result.output
    assert len(open_jobs(connection)) == 1


def test_nothing_that_failed_is_nothing_to_do(invoke: Invoke) -> None:
    result = invoke("retry", "--all-failed")
    assert result.exit_code == 0
    assert "Nothing to try again" in result.output


@pytest.mark.parametrize("options", [(), ("x", "--all-failed"), ("--all-failed", "--kind", "source_gone")])
def test_options_that_make_no_sense_are_refused(invoke: Invoke, options: tuple[str, ...]) -> None:
    assert invoke("retry", *options).exit_code == 2


def test_an_image_whose_failure_only_another_version_knows_is_tried_again(
    invoke: Invoke, connection: sa.Connection
) -> None:
    image_id = gone(connection)
    connection.execute(sa.text("UPDATE cdn_image_assets SET failure_kind = 'of_tomorrow'"))
    document = json.loads(invoke("retry", str(image_id), "--json").output)
    assert [(each["answer"], each["failure"]) for each in document["images"]] == [("reopened", None)]


def test_where_no_sensor_looks_it_is_said_and_where_one_does_it_starts_the_run(
    invoke: Invoke, connection: sa.Connection
) -> None:
    first, second = gone(connection, "1"), gone(connection, "2")
    alone = invoke("retry", str(first))
    assert "No run comes by itself: due_images_sensor was never seen" in alone.output
    assert "dagster job execute" in alone.output
    beat(connection, DUE_SENSOR)
    attended = invoke("retry", str(second))
    assert "The sensor starts a run for them within a minute" in attended.output
    assert json.loads(invoke("retry", str(second), "--json").output)["hint"] is None


def test_what_is_due_or_in_hand_again_is_not_chosen_another_time(invoke: Invoke, connection: sa.Connection) -> None:
    gone(connection, "1")
    later(connection, "2")
    assert len(json.loads(invoke("retry", "--all-failed", "--json").output)["images"]) == 2
    take_one(connection, selection=replace(EVERYTHING, owner_ids=("owner 1",)))
    assert "Nothing to try again" in invoke("retry", "--all-failed").output
