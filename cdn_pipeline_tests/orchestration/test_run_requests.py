"""Which runs are asked for: properties of the decision over all that can be due, changed and covered."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.collections import SHARDS
from cdn_pipeline.engine.due_work import DueWork
from cdn_pipeline.orchestration.run_requests import (
    BRIDGED,
    WORTH_SPLITTING,
    Covered,
    Lane,
    PlannedRun,
    plan_runs,
    why_nothing,
)
from cdn_pipeline.queue.demand import Demand

NOW = datetime(2026, 3, 1, 13, 59, 58, tzinfo=UTC)
REGULAR, BULK = 4, 6


def due_work(demands: Mapping[str, Demand] | None = None, **more: Any) -> DueWork:
    found: dict[str, Any] = {
        "now": NOW,
        "demands": demands or {},
        "changed": frozenset(),
        "source_read_until": None,
    }
    return DueWork(**{**found, **more})


def due(count: int = 1, priority: int = REGULAR, dies_in: timedelta = timedelta(days=3)) -> Demand:
    return Demand(due=count, best_priority=priority, earliest_deadline=NOW + dies_in)


def plan(work: DueWork, covered: Covered | None = None) -> list[PlannedRun]:
    return plan_runs(work, covered or Covered(), shards_per_run=16)


def numbers(run: PlannedRun) -> range:
    return range(SHARDS.index(run.first), SHARDS.index(run.last) + 1)


def needy(work: DueWork, covered: Covered) -> list[int]:
    """The rule in its plainest words, by the number of the shard."""
    found = []
    for number, shard in enumerate(SHARDS):
        demand = work.demands.get(shard, Demand())
        only_bulk_work = shard not in work.changed and (demand.best_priority or BULK) >= BULK
        needed = demand.due > 0 or shard in work.changed
        if needed and shard not in covered.shards and not (only_bulk_work and shard in covered.by_bulk):
            found.append(number)
    return found


some_shards = st.frozensets(st.sampled_from(SHARDS))
demands = st.builds(
    due,
    st.integers(1, 3000),
    st.integers(1, 10),
    st.timedeltas(min_value=timedelta(hours=-1), max_value=timedelta(days=5)),
)
works = st.builds(
    due_work,
    st.dictionaries(st.sampled_from(SHARDS), st.one_of(demands, st.just(Demand(waiting=1, next_attempt_at=NOW)))),
    changed=some_shards,
)
coverings = st.builds(Covered, some_shards, some_shards)


@given(works, coverings)
def test_every_shard_that_needs_a_run_is_in_exactly_one(work: DueWork, covered: Covered) -> None:
    runs = plan(work, covered)
    found = [number for run in runs for number in numbers(run)]
    assert len(found) == len(set(found))
    assert set(needy(work, covered)) <= set(found)


@given(works, coverings)
def test_no_range_begins_or_ends_with_a_shard_that_needs_nothing(work: DueWork, covered: Covered) -> None:
    wanted = needy(work, covered)
    for run in plan(work, covered):
        assert numbers(run)[0] in wanted
        assert numbers(run)[-1] in wanted


@given(works, coverings)
def test_there_are_no_more_ranges_than_gaps_and_work_demand(work: DueWork, covered: Covered) -> None:
    wanted = needy(work, covered)
    runs = plan(work, covered)
    wide_gaps = sum(after - before - 1 > BRIDGED for before, after in pairwise(wanted))
    ranges = wide_gaps + 1 if wanted else 0
    total = sum(work.demands.get(SHARDS[number], Demand()).due for number in wanted)
    if total <= WORTH_SPLITTING:
        assert len(runs) == ranges
    else:
        assert ranges <= len(runs) <= ranges + len(SHARDS) // 16
        for run in runs:
            amount = sum(work.demands.get(SHARDS[n], Demand()).due for n in numbers(run) if n in wanted)
            assert amount <= WORTH_SPLITTING or len(numbers(run)) <= 16


@given(works, coverings)
def test_a_run_is_as_urgent_as_the_most_urgent_shard_that_needs_it(work: DueWork, covered: Covered) -> None:
    wanted = needy(work, covered)
    for run in plan(work, covered):
        inside = [SHARDS[number] for number in numbers(run) if number in wanted]
        priorities = [work.demands[shard].best_priority or 10 for shard in inside if shard in work.demands]
        changed = any(shard in work.changed for shard in inside)
        best = min(priorities, default=10)
        expected = Lane.URGENT if best == 1 else Lane.REGULAR if changed or best < BULK else Lane.BULK
        assert run.lane is expected
        assert run.priority in {Lane.URGENT: (10,), Lane.REGULAR: (0, 5), Lane.BULK: (-10,)}[run.lane]


@given(coverings)
def test_where_nothing_is_due_and_nothing_changed_no_run_is_asked_for(covered: Covered) -> None:
    assert plan(due_work({"05": Demand(waiting=3, next_attempt_at=NOW)}), covered) == []


@given(works)
def test_what_other_runs_cover_is_not_asked_for_twice(work: DueWork) -> None:
    assert plan(work, Covered(shards=frozenset(SHARDS))) == []


# -- examples --


def test_a_gap_of_sixteen_shards_is_bridged_and_one_of_seventeen_is_not() -> None:
    assert [(run.first, run.last) for run in plan(due_work({"00": due(), "11": due()}))] == [("00", "11")]
    assert [(run.first, run.last) for run in plan(due_work({"00": due(), "12": due()}))] == [("00", "00"), ("12", "12")]


def test_much_work_is_cut_into_pieces_that_several_machines_can_share() -> None:
    everywhere = {shard: due(1000) for shard in SHARDS}
    assert [(run.first, run.last) for run in plan(due_work(everywhere))] == [(f"{n}0", f"{n}f") for n in range(4)]
    assert len(plan(due_work({shard: due(30) for shard in SHARDS}))) == 1


def test_a_bulk_run_covers_bulk_work_only() -> None:
    covered = Covered(by_bulk=frozenset({"05"}))
    assert plan(due_work({"05": due(priority=BULK)}), covered) == []
    assert [run.lane for run in plan(due_work({"05": due(priority=1)}), covered)] == [Lane.URGENT]
    assert [run.lane for run in plan(due_work({"05": due(priority=REGULAR)}), covered)] == [Lane.REGULAR]
    assert [run.lane for run in plan(due_work(changed=frozenset({"05"})), covered)] == [Lane.REGULAR]


@pytest.mark.parametrize(
    ("demand", "priority"),
    [
        (due(priority=1), 10),
        (due(dies_in=timedelta(minutes=59)), 5),
        (due(dies_in=timedelta(hours=2)), 0),
        (due(priority=BULK, dies_in=timedelta(minutes=5)), -10),
    ],
)
def test_what_cannot_wait_starts_first(demand: Demand, priority: int) -> None:
    (run,) = plan(due_work({"05": demand}))
    assert run.priority == priority


def test_the_same_need_has_one_key_per_minute_range_and_lane() -> None:
    def key(**more: Any) -> str:
        (run,) = plan(due_work({"05": due()}, **more))
        return run.run_key

    assert key() == "05-05:regular:2026-03-01T13:59Z"
    assert key(now=NOW + timedelta(seconds=1)) == key()
    assert key(now=NOW + timedelta(seconds=2)) != key()
    assert key(changed=frozenset({"06"})) != key()


def test_the_reason_for_no_run_is_told_with_numbers() -> None:
    read_until = NOW - timedelta(seconds=18)
    next_attempt = NOW + timedelta(minutes=5, seconds=10)
    waiting = {"05": Demand(waiting=2, next_attempt_at=next_attempt), "06": Demand(waiting=1, next_attempt_at=NOW)}
    assert why_nothing(due_work()) == "nothing is due; no source row changed"
    assert why_nothing(due_work({"05": waiting["05"]}, source_read_until=read_until)) == (
        "nothing is due; 2 retries wait, the next at 14:05 UTC; no source row changed since 13:59:40 UTC"
    )
    assert "3 retries wait, the next at 13:59 UTC" in why_nothing(due_work(waiting))
    assert "1 retry waits, the next at 2026-03-02 13:59 UTC" in why_nothing(
        due_work({"05": Demand(waiting=1, next_attempt_at=NOW + timedelta(days=1))})
    )
    assert why_nothing(due_work({"05": due(1200), "06": due()}, changed=frozenset({"07"}))) == (
        "runs are at work on the 1,201 images due in 2 shards; runs are reading changed source rows of 1 shard"
    )
