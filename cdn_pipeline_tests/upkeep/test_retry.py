"""Whoever tries a picture again, by whichever way: what was known of it stays known, and the same images are meant."""

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from rich.console import Console

from cdn_pipeline.cli.retry import Wanted, retry
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.faults import Fault
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.audit import latest_actions
from cdn_pipeline.queue.holds import hold_queue
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.retrying import TRIED_AGAIN
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.settings import Settings
from cdn_pipeline.upkeep.retry import failing_images
from cdn_pipeline_tests.api.apis import ADMIN, api
from cdn_pipeline_tests.api.pages.operators import press, sign_in
from cdn_pipeline_tests.engine.runs import rows, run
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    outcome,
    publish,
    reference,
    see,
    session,
    source_url,
    take_one,
)
from cdn_pipeline_tests.world import SmallWorld

KIND = FailureKind.SOURCE_ERROR

# -- a picture that is gone --

Way = Callable[[Settings, httpx.Client, uuid.UUID, uuid.UUID], object]


def by_command(settings: Settings, client: httpx.Client, image_id: uuid.UUID, job_id: uuid.UUID) -> object:
    return retry(settings, Console(quiet=True), Wanted([str(image_id)]), dry_run=False, as_json=False)


def by_api(settings: Settings, client: httpx.Client, image_id: uuid.UUID, job_id: uuid.UUID) -> object:
    return client.post("/api/v1/admin/cdn/retry-failed", json={"job_ids": [str(job_id)]}, headers=ADMIN)


def by_button(settings: Settings, client: httpx.Client, image_id: uuid.UUID, job_id: uuid.UUID) -> object:
    return press(client, "retry", job_id=str(job_id))


def by_button_for_the_kind(settings: Settings, client: httpx.Client, image_id: uuid.UUID, job_id: uuid.UUID) -> object:
    return press(client, "retry-kind", kind=FailureKind.SOURCE_GONE)


@pytest.mark.parametrize("way", [by_command, by_api, by_button, by_button_for_the_kind])
def test_a_404_on_the_retry_of_a_picture_that_is_gone_ends_as_gone_again(
    small_world: SmallWorld, settings: Settings, catalog: sa.Engine, way: Way
) -> None:
    world = small_world(profiles=1, posts=0)
    with world.engine.connect() as connection:
        avatar = connection.scalar(sa.text("SELECT profile_pic_url_hd FROM profiles"))
    world.origin.misbehaviour.order(urlsplit(avatar).path, Fault.GONE, attempts=9)
    run(settings)
    with catalog.begin() as connection:  # as after the 404 of a fresh URL
        connection.execute(
            sa.text("UPDATE cdn_image_assets SET processing_status = 'failed', failure_kind = 'source_gone'")
        )
    [first] = rows(catalog, "SELECT asset_id, id FROM cdn_image_jobs")
    with api(settings) as client:
        sign_in(client)
        way(settings, client, first["asset_id"], first["id"])
    run(settings)
    [image] = rows(catalog, "SELECT processing_status, failure_kind FROM cdn_image_assets")
    assert image == {"processing_status": "failed", "failure_kind": "source_gone"}
    attempts = rows(catalog, "SELECT job_type, status, failure_kind FROM cdn_image_jobs ORDER BY created_at")
    assert [tuple(attempt.values()) for attempt in attempts] == [
        ("ingest", "failed", "source_url_404"),
        ("retry", "failed", "source_gone"),
    ]


def test_what_is_known_to_be_gone_stays_so_without_its_jobs_as_well(catalog: sa.Engine, settings: Settings) -> None:
    with session(catalog) as connection:
        image_id = fail(connection, "1", Verdict.FAILED, FailureKind.SOURCE_GONE)
        connection.execute(sa.text("DELETE FROM cdn_image_jobs"))
        retry(settings, Console(quiet=True), Wanted([str(image_id)]), dry_run=False, as_json=False)
        assert take_one(connection).last_failure is FailureKind.SOURCE_GONE


# -- all of a kind --


def fail(connection: sa.Connection, image: str, verdict: Verdict, kind: FailureKind, *, later: float = 0) -> uuid.UUID:
    """An image whose only attempt ended so; its id."""
    see(connection, reference(source_url(lives=timedelta(days=1)), image=image))
    job = take_one(connection)
    settle(connection, RUN, [outcome(job, verdict, failure=kind, retry_in_seconds=later)])
    return job.asset_id


def fill(connection: sa.Connection) -> dict[str, uuid.UUID]:
    """Images that have failed with the kind, in every way there is, and some that have not; those by name that have."""
    failed = {"for good": fail(connection, "for good", Verdict.FAILED, KIND)}
    failed["long ago"] = fail(connection, "long ago", Verdict.FAILED, KIND)
    archive = (
        "UPDATE cdn_image_jobs SET archived_at = now(), completed_at = now() - interval '9 d' WHERE asset_id = :id"
    )
    connection.execute(sa.text(archive), {"id": failed["long ago"]})
    failed["without a job"] = fail(connection, "without a job", Verdict.FAILED, KIND)
    connection.execute(sa.text("DELETE FROM cdn_image_jobs WHERE asset_id = :id"), {"id": failed["without a job"]})
    failed["waits"] = fail(connection, "waits", Verdict.WAITING, KIND)
    held = fail(connection, "held", Verdict.RETRYING, KIND, later=7000)
    hold_queue(connection, INSTAGRAM)
    failed["held"] = held
    failed["later"] = fail(connection, "later", Verdict.RETRYING, KIND, later=7000)
    fail(connection, "another kind", Verdict.FAILED, FailureKind.IMAGE_CORRUPT)
    # The job of its first failure is of the kind, but its last failure is not.
    other = fail(connection, "other since", Verdict.FAILED, KIND)
    set_kind = sa.text("UPDATE cdn_image_assets SET failure_kind = 'image_corrupt' WHERE id = :id")
    connection.execute(set_kind, {"id": other})
    see(connection, reference(image="published"))
    publish(connection)
    return failed


def test_the_button_for_a_kind_and_the_command_choose_the_same_images(
    settings: Settings, catalog: sa.Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    with session(catalog) as connection:
        failed = fill(connection)
        retry(settings, Console(), Wanted(kind=KIND), dry_run=True, as_json=True)
        images = json.loads(capsys.readouterr().out)["images"]
        tried = {each["image_id"] for each in images if each["answer"] in TRIED_AGAIN}
        assert {each["image_id"] for each in images} == set(map(str, failed.values()))
        with api(settings) as client:
            sign_in(client)
            press(client, "retry-kind", kind=KIND)
        (entry,) = latest_actions(connection, 9)
        assert set(entry.details["images"]) == tried == set(map(str, failed.values())) - {str(failed["held"])}
        assert entry.details["asked"] == len(images)
        assert failing_images(connection, INSTAGRAM, kind=KIND) == [failed["held"]]
