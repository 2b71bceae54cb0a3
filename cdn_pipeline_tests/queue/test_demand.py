from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from cdn_pipeline.demo import fast_clock
from cdn_pipeline.queue.demand import _DEMAND, Demand, demand_by_shard
from cdn_pipeline.queue.due import count_due
from cdn_pipeline_tests.queue.catalogs import EVERYTHING, NOW, reference, see, session, source_url, take


def change_jobs(connection: sa.Connection, change: str, shard: str) -> None:
    connection.execute(sa.text(f"UPDATE cdn_image_jobs SET {change} WHERE shard = :shard"), {"shard": shard})


def test_an_empty_queue_demands_nothing(connection: sa.Connection) -> None:
    assert demand_by_shard(connection, EVERYTHING) == {}


def test_demand_tells_how_much_is_due_how_urgent_and_until_when(connection: sa.Connection) -> None:
    see(
        connection,
        reference(source_url(lives=timedelta(days=2)), image="1", shard="05"),
        reference(source_url(lives=timedelta(days=1)), image="2", shard="05", source_type="post_thumbnail"),
        reference(source_url(lives=None), image="3", shard="3f", source_type="post_thumbnail"),
    )
    assert demand_by_shard(connection, EVERYTHING) == {
        "05": Demand(due=2, best_priority=2, earliest_deadline=NOW + timedelta(days=1)),
        "3f": Demand(due=1, best_priority=4),
    }


def test_what_waits_is_counted_apart_and_what_is_on_hold_or_in_hand_is_not(connection: sa.Connection) -> None:
    see(connection, *(reference(image=shard, shard=shard) for shard in ("01", "02", "03", "04")))
    change_jobs(connection, "next_attempt_at = now() + interval '1 hour'", "01")
    change_jobs(connection, "held_at = now()", "02")
    change_jobs(connection, "rollout = 'of_other_code'", "03")
    take(connection, shards=["04"])
    demands = demand_by_shard(connection, EVERYTHING)
    assert set(demands) == {"01"}
    waiting = demands["01"]
    assert (waiting.due, waiting.best_priority, waiting.earliest_deadline, waiting.waiting) == (0, None, None, 1)
    assert waiting.next_attempt_at


def test_bulk_work_is_counted_apart(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number), shard="05") for number in range(4)))
    connection.execute(
        sa.text("""
            UPDATE cdn_image_jobs SET priority = numbered.priority, deadline = numbered.deadline
            FROM (SELECT id, (ARRAY[2, 6, 10, 10])[number] AS priority,
                         CASE WHEN number = 1 THEN deadline ELSE now() END AS deadline
                  FROM (SELECT *, row_number() OVER () AS number FROM cdn_image_jobs) AS jobs) AS numbered
            WHERE cdn_image_jobs.id = numbered.id""")
    )
    demand = demand_by_shard(connection, EVERYTHING)["05"]
    assert demand == Demand(due=1, best_priority=2, earliest_deadline=NOW + timedelta(days=3), bulk_due=3)
    change_jobs(connection, "priority = 10", "05")
    assert demand_by_shard(connection, EVERYTHING)["05"] == Demand(bulk_due=4)


MARK = "date_bin('5 min', now(), 'epoch')"


@pytest.fixture
def two_past(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """A session at two minutes past one of the five-minute marks."""
    fast_clock.install(catalog)
    with session(catalog) as connection:
        since_mark = connection.execute(sa.text(f"SELECT now() - {MARK}")).scalar_one()
        fast_clock.set_offset(catalog, timedelta(minutes=2) - since_mark)
        yield connection


@pytest.mark.parametrize(
    ("after_mark", "more", "waits_until"),
    [
        ("0", {}, None),
        ("1 ms", {}, 5),
        ("5 min", {}, 5),
        ("5 min 1 ms", {}, 10),
        ("1 ms", {"retry_count": 0}, None),
        ("3 min", {"retry_count": 0}, 3),
        ("1 ms", {"deadline": f"{MARK} + interval '11 min'"}, None),
        ("3 min", {"deadline": f"{MARK} + interval '11 min'"}, 3),
        ("1 ms", {"deadline": f"{MARK} + interval '13 min'"}, 5),
    ],
)
def test_retries_make_a_demand_at_five_minute_marks_unless_their_deadline_is_near(
    two_past: sa.Connection, after_mark: str, more: dict[str, object], waits_until: int | None
) -> None:
    see(two_past, reference(shard="05"))
    values = {"retry_count": 4, "next_attempt_at": f"{MARK} + interval '{after_mark}'", **more}
    change_jobs(two_past, ", ".join(f"{column} = {value}" for column, value in values.items()), "05")
    demand = demand_by_shard(two_past, EVERYTHING)["05"]
    assert (demand.due, demand.waiting) == ((1, 0) if waits_until is None else (0, 1))
    if waits_until is not None:
        mark = two_past.execute(sa.text(f"SELECT {MARK}")).scalar_one()
        assert demand.next_attempt_at == mark + timedelta(minutes=waits_until)


def test_a_retry_that_waits_for_a_mark_is_taken_by_a_run_that_is_there(two_past: sa.Connection) -> None:
    see(two_past, reference(shard="05"))
    change_jobs(two_past, f"retry_count = 4, next_attempt_at = {MARK} + interval '1 ms'", "05")
    assert demand_by_shard(two_past, EVERYTHING)["05"].due == 0
    assert len(take(two_past)) == 1


def test_demand_is_what_runs_would_claim(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number), shard=f"{number % 7:02x}") for number in range(30)))
    change_jobs(connection, "next_attempt_at = now() + interval '1 hour'", "03")
    found = {shard: demand.due for shard, demand in demand_by_shard(connection, EVERYTHING).items()}
    assert found == {shard: count_due(connection, EVERYTHING, [shard]) for shard in found}
    assert sum(found.values()) == len(take(connection))


def test_demand_reads_the_index_of_the_queue_and_not_the_finished_jobs(connection: sa.Connection) -> None:
    see(connection, *(reference(image=str(number)) for number in range(20)))
    connection.execute(
        sa.text("""
            INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url, status, completed_at)
            SELECT asset_id, collection, shard, job_type, source_url, 'completed', now()
            FROM cdn_image_jobs, generate_series(1, 1000)
        """)
    )
    connection.execute(sa.text("ANALYZE cdn_image_jobs"))
    plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {_DEMAND}"), EVERYTHING.parameters))
    assert "ix_cdn_image_jobs_due" in plan
    assert "Seq Scan on cdn_image_jobs" not in plan
