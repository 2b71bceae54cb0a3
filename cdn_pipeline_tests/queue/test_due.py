import dataclasses
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue import due
from cdn_pipeline.queue.due import Outlook, Selection, claim, count_due, outlook
from cdn_pipeline.queue.leases import LEASE, Run
from cdn_pipeline.queue.outcomes import Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline_tests.queue.catalogs import (
    EVERYTHING,
    RUN,
    both_sizes,
    jobs,
    outcome,
    published,
    reference,
    see,
    session,
    source_url,
    take,
    take_one,
)

OTHER = Run("run-2", "there:2")
HORIZON = timedelta(seconds=24)


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    with session(catalog) as connection:
        yield connection


def see_many(connection: sa.Connection, count: int, shard: str = "00", **more: Any) -> None:
    see(connection, *(reference(image=f"{shard}-{number}", shard=shard, **more) for number in range(count)))


# -- order --


def test_jobs_are_claimed_by_priority_then_by_deadline_and_no_deadline_comes_last(connection: sa.Connection) -> None:
    wanted = [
        ("avatar, hours left", "profile_avatar", timedelta(hours=3)),
        ("avatar, days left", "profile_avatar", timedelta(days=3)),
        ("avatar for ever", "profile_avatar", None),
        ("post, minutes left", "post_thumbnail", timedelta(minutes=3)),
        ("post for ever", "post_thumbnail", None),
    ]
    for image, source_type, lives in reversed(wanted):
        see(connection, reference(source_url(lives=lives), image=image, source_type=source_type))
    claimed = [claim(connection, RUN, EVERYTHING, ["00"], batch=1, total=9)[0].source_id for _ in wanted]
    assert claimed == [image for image, *_ in wanted]


def test_the_order_of_the_stream_is_that_of_the_claim(connection: sa.Connection) -> None:
    for image, lives in (("late", timedelta(days=3)), ("never", None), ("soon", timedelta(hours=1))):
        see(connection, reference(source_url(lives=lives), image=image))
    assert [job.source_id for job in take(connection)] == ["soon", "late", "never"]


def test_a_total_takes_the_most_urgent_of_all_shards(connection: sa.Connection) -> None:
    for number, shard in enumerate(SHARDS[:8]):
        see(connection, reference(source_url(lives=timedelta(days=9 - number)), image=shard, shard=shard))
    claimed = claim(connection, RUN, EVERYTHING, SHARDS[:8], batch=5, total=3)
    assert {job.source_id for job in claimed} == {"05", "06", "07"}


# -- how many, and which --


def test_a_batch_is_per_shard(connection: sa.Connection) -> None:
    see_many(connection, 5, "00")
    see_many(connection, 1, "01")
    see_many(connection, 5, "02")
    claimed = claim(connection, RUN, EVERYTHING, ["00", "01"], batch=3, total=100)
    assert sorted(job.shard for job in claimed) == ["00", "00", "00", "01"]
    assert count_due(connection, EVERYTHING, SHARDS) == 2 + 5


def test_nothing_is_claimed_without_shards(connection: sa.Connection) -> None:
    see_many(connection, 1)
    assert claim(connection, RUN, EVERYTHING, [], batch=3, total=3) == []


def test_owners_can_be_selected(connection: sa.Connection) -> None:
    for owner in ("a", "b", "c"):
        see(connection, reference(image=owner, owner=owner))
    of_two = dataclasses.replace(EVERYTHING, owner_ids=("a", "c", "unknown"))
    assert count_due(connection, of_two, SHARDS) == 2
    assert {job.owner_id for job in take(connection, selection=of_two)} == {"a", "c"}
    assert take(connection, selection=dataclasses.replace(EVERYTHING, owner_ids=())) == []


def test_work_that_can_wait_can_be_left_out(connection: sa.Connection) -> None:
    see_many(connection, 3)
    first = "(SELECT id FROM cdn_image_jobs ORDER BY id LIMIT 1)"
    connection.execute(sa.text(f"UPDATE cdn_image_jobs SET priority = 6 WHERE id = {first}"))
    urgent_only = dataclasses.replace(EVERYTHING, before_priority=6)
    assert count_due(connection, urgent_only, SHARDS) == 2
    assert sum(each.due for each in outlook(connection, RUN, urgent_only, SHARDS, horizon=timedelta()).values()) == 2
    assert [job.priority for job in take(connection, selection=urgent_only)] == [2, 2]
    assert [job.priority for job in take(connection)] == [6]


def test_jobs_of_another_collection_are_left_alone(connection: sa.Connection) -> None:
    see_many(connection, 1)
    other = Selection(dataclasses.replace(INSTAGRAM, name="vehicles"), frozenset(Stage))
    assert count_due(connection, other, SHARDS) == 0
    assert take(connection, selection=other) == []


@pytest.mark.parametrize(
    "change",
    [
        "held_at = now()",
        "next_attempt_at = now() + interval '1 minute'",
        "status = 'cancelled'",
        "status = 'completed'",
        "stage = 'publish'",
    ],
)
def test_what_is_not_due_is_not_claimed(connection: sa.Connection, change: str) -> None:
    see_many(connection, 1)
    connection.execute(sa.text(f"UPDATE cdn_image_jobs SET {change}"))
    to_encode = Selection(INSTAGRAM, frozenset({Stage.DOWNLOAD, Stage.ENCODE}))
    assert count_due(connection, to_encode, SHARDS) == 0
    assert take(connection, selection=to_encode) == []


def test_a_claim_leases_the_job_and_marks_the_image(connection: sa.Connection) -> None:
    see_many(connection, 1)
    job = take_one(connection)
    (row,) = jobs(connection)
    assert (row["status"], row["run_id"], row["worker_id"]) == ("processing", RUN.run_id, RUN.worker_id)
    assert row["lease_until"] - row["started_at"] == pytest.approx(LEASE, abs=timedelta(seconds=1))
    status = sa.text("SELECT processing_status FROM cdn_image_assets WHERE id = :id")
    assert connection.scalar(status, {"id": job.asset_id}) == "downloading"
    assert take(connection, OTHER) == []


def test_a_claimed_job_tells_what_is_known_of_its_image(connection: sa.Connection) -> None:
    best, lesser = source_url("hd", rank=1080), source_url("sd", rank=150)
    see(connection, reference(lesser, best, image="7", owner="o", shard="3f"))
    job = take_one(connection)
    assert (job.urls, job.ranks) == ((best.url, lesser.url), (1080, 150))
    assert (job.owner_id, job.source_id, job.shard, job.identity) == ("o", "7", "3f", "file:A")
    assert (job.priority, job.deadline, job.url_expires_at) == (2, best.expires_at, best.expires_at)
    assert (job.current_paths, job.stored, job.up_to_date, job.last_failure) == (frozenset(), (), False, None)


@pytest.mark.parametrize(
    ("renditions", "up_to_date"),
    [
        (both_sizes(), True),
        (both_sizes(version=0), False),
        (both_sizes()[:1], False),
        (both_sizes(original="another"), False),
    ],
    ids=["all", "another version", "one size only", "of another original"],
)
def test_up_to_date_are_all_sizes_of_this_recipe_from_this_original(
    connection: sa.Connection, renditions: Any, up_to_date: bool
) -> None:
    see(connection, reference(age=timedelta(hours=1)))
    settle(connection, RUN, [dataclasses.replace(published(take_one(connection)), renditions=renditions)])
    see(connection, reference(source_url(picture="B")))
    job = take_one(connection)
    assert job.up_to_date is up_to_date
    assert job.current_paths == {each.path for each in renditions}


# -- concurrency --


def test_two_claimers_at_once_never_get_one_job_twice(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        for shard in SHARDS[:4]:
            see_many(connection, 50, shard)

    def claim_all(run: Run) -> list[Any]:
        claimed: list[Any] = []
        with session(catalog) as connection:
            while got := claim(connection, run, EVERYTHING, SHARDS, batch=3, total=7):
                claimed += [job.job_id for job in got]
        return claimed

    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(claim_all, [Run(f"run-{number}", "here") for number in range(4)]))
    claimed = [job_id for share in shares for job_id in share]
    assert len(claimed) == len(set(claimed)) == 200


def test_what_another_claims_at_the_moment_is_skipped_and_not_waited_for(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see_many(connection, 3)
    with catalog.connect() as one, catalog.connect() as other:
        first = claim(one, RUN, EVERYTHING, SHARDS, batch=2, total=2)
        second = claim(other, OTHER, EVERYTHING, SHARDS, batch=5, total=5)
    assert (len(first), len(second)) == (2, 1)
    assert not {job.job_id for job in first} & {job.job_id for job in second}


# -- outlook --


def test_the_outlook_tells_what_is_left_in_each_shard(connection: sa.Connection) -> None:
    nothing = Outlook(due=0, held_by_others=0, next_attempt_in=None)
    see_many(connection, 1, "00")
    take_one(connection)  # our own
    see_many(connection, 2, "01")
    take(connection, OTHER, shards=["01"])
    see_many(connection, 1, "02")
    see_many(connection, 2, "03")
    late = take(connection, shards=["03"])
    settle(connection, RUN, [outcome(job, Verdict.RETRYING, retry_in_seconds=20) for job in late])
    see_many(connection, 1, "04")
    settle(
        connection,
        RUN,
        [outcome(job, Verdict.RETRYING, retry_in_seconds=900) for job in take(connection, shards=["04"])],
    )
    see_many(connection, 1, "05")
    connection.execute(sa.text("UPDATE cdn_image_jobs SET held_at = now() WHERE shard = '05'"))
    left = outlook(connection, RUN, EVERYTHING, SHARDS[:7], horizon=HORIZON)
    retry = left.pop("03")
    assert left == {
        "00": nothing,
        "01": Outlook(due=0, held_by_others=2, next_attempt_in=None),
        "02": Outlook(due=1, held_by_others=0, next_attempt_in=None),
        "04": nothing,
        "05": nothing,
        "06": nothing,
    }
    assert (retry.due, retry.held_by_others) == (0, 0)
    assert retry.next_attempt_in is not None
    assert timedelta() < retry.next_attempt_in <= timedelta(seconds=20)


# -- plans --

MANY = 50_000


@pytest.fixture
def crowded(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """A catalog with 50,000 jobs, nine of ten of them finished."""
    with session(catalog) as connection:
        connection.execute(
            sa.text("ALTER TABLE cdn_image_jobs DROP CONSTRAINT fk_cdn_image_jobs_asset_id_cdn_image_assets")
        )
        connection.execute(
            sa.text("""
                INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, priority, source_url, deadline,
                                            status, next_attempt_at)
                SELECT gen_random_uuid(), 'instagram', lpad(to_hex(n % 64), 2, '0'), 'ingest', 1 + n % 7, 'https://x',
                       now() + n * interval '1 second',
                       CASE n % 10 WHEN 0 THEN 'queued' ELSE 'completed' END, now() - interval '1 second'
                FROM generate_series(1, :many) AS n
            """),
            {"many": MANY},
        )
        connection.execute(sa.text("ANALYZE cdn_image_jobs"))
        yield connection


def plan(connection: sa.Connection, query: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All nodes of the plan that a prepared statement gets, which knows nothing of its parameters."""
    connection.execute(sa.text("SET plan_cache_mode = force_generic_plan"))
    found = connection.scalar(sa.text(f"EXPLAIN (FORMAT JSON) {query}"), parameters)
    tree = found if isinstance(found, list) else json.loads(found)
    return list(_nodes(tree[0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


CLAIM_PARAMETERS: Mapping[str, Any] = {
    **EVERYTHING.parameters,
    "shards": list(SHARDS),
    "batch": 16,
    "total": 1024,
    "leaving_out": [],
    "run_id": "run",
    "worker_id": "here",
    "lease": LEASE,
}


def test_a_claim_reads_the_due_index_in_its_order(crowded: sa.Connection) -> None:
    nodes = plan(crowded, str(due._CLAIM), CLAIM_PARAMETERS)
    scans = [node for node in nodes if node.get("Relation Name") == "cdn_image_jobs" and "Scan" in node["Node Type"]]
    picking = [node for node in scans if node.get("Index Name") == "ix_cdn_image_jobs_due"]
    assert [node["Node Type"] for node in picking] == ["Index Scan"]
    assert "Seq Scan" not in {node["Node Type"] for node in scans}
    (lock,) = (node for node in nodes if node["Node Type"] == "LockRows")
    assert "Sort" not in {node["Node Type"] for node in _nodes(lock)}


def test_counting_reads_no_finished_jobs(crowded: sa.Connection) -> None:
    parameters = {**EVERYTHING.parameters, "shards": SHARDS[:2], "run_id": "run", "horizon": HORIZON}
    assert sum(each.due for each in outlook(crowded, RUN, EVERYTHING, SHARDS, horizon=HORIZON).values()) == MANY // 10
    for query in (due._COUNT_DUE, due._OUTLOOK):
        nodes = plan(crowded, str(query), {**parameters, "shards": list(SHARDS[:2])})
        assert "Seq Scan" not in {node["Node Type"] for node in nodes if node.get("Relation Name") == "cdn_image_jobs"}


def test_a_claim_of_a_few_owners_finds_their_jobs(crowded: sa.Connection) -> None:
    see(crowded, reference(owner="wanted"))
    (job,) = take(crowded, selection=dataclasses.replace(EVERYTHING, owner_ids=("wanted",)))
    settle(crowded, RUN, [outcome(job, Verdict.FAILED, failure=FailureKind.IMAGE_CORRUPT)])
    assert len(crowded.execute(sa.text("SELECT FROM cdn_image_jobs WHERE status = 'failed'")).all()) == 1


def test_an_image_whose_failure_only_another_version_knows_is_claimed(connection: sa.Connection) -> None:
    see(connection, reference())
    connection.execute(sa.text("UPDATE cdn_image_assets SET failure_kind = 'of_tomorrow'"))
    assert take_one(connection).last_failure is None
