"""Which runs are asked for: properties of the decision over all that can be due, changed and covered."""

from collections.abc import Mapping, Set
from dataclasses import replace
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
    Need,
    PlannedRun,
    plan_runs,
    why_nothing,
)
from cdn_pipeline.queue.demand import Demand

NOW = datetime(2026, 3, 1, 13, 59, 58, tzinfo=UTC)
REGULAR = 4


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


def bulk(count: int = 1) -> Demand:
    return Demand(bulk_due=count)


def cover(needs: Set[Need], shards: Set[str] = frozenset(SHARDS)) -> Covered:
    return Covered(dict.fromkeys(shards, needs))


def plan(work: DueWork, covered: Covered | None = None) -> list[PlannedRun]:
    return plan_runs(work, covered or Covered(), shards_per_run=16)


def numbers(run: PlannedRun) -> range:
    return range(SHARDS.index(run.first), SHARDS.index(run.last) + 1)


def needs_of(number: int, work: DueWork, covered: Covered) -> set[Need]:
    """The rule in its plainest words."""
    shard = SHARDS[number]
    demand = work.demands.get(shard, Demand())
    is_urgent = demand.best_priority == 1
    needs = {
        Need.URGENT: is_urgent,
        Need.DUE: demand.due > 0 and not is_urgent,
        Need.REFRESH: shard in work.refreshes,
        Need.CHANGED: shard in work.changed,
        Need.BULK: demand.bulk_due > 0,
    }
    return {need for need, is_there in needs.items() if is_there and need not in covered.needs.get(shard, ())}


def needy(work: DueWork, covered: Covered, *, bulk: bool) -> list[int]:
    """The shards that need a bulk run, or one of the other lanes, by their number."""
    lanes = {True: {Need.BULK}, False: set(Need) - {Need.BULK}}
    return [number for number in range(len(SHARDS)) if needs_of(number, work, covered) & lanes[bulk]]


def runs_of(runs: list[PlannedRun], *, bulk: bool) -> list[PlannedRun]:
    return [run for run in runs if (run.lane is Lane.BULK) == bulk]


def amount(work: DueWork, numbers: list[int], *, bulk: bool) -> int:
    demands = [work.demands.get(SHARDS[number], Demand()) for number in numbers]
    return sum(demand.bulk_due if bulk else demand.due for demand in demands)


some_shards = st.frozensets(st.sampled_from(SHARDS))
demands = st.builds(
    lambda soon, later: replace(soon, bulk_due=later.bulk_due),
    st.builds(
        due,
        st.integers(1, 3000),
        st.integers(1, 5),
        st.timedeltas(min_value=timedelta(hours=-1), max_value=timedelta(days=5)),
    )
    | st.just(Demand(waiting=1, next_attempt_at=NOW)),
    st.builds(bulk, st.integers(0, 3000)),
)
works = st.builds(
    due_work, st.dictionaries(st.sampled_from(SHARDS), demands), changed=some_shards, refreshes=some_shards
)
coverings = st.builds(Covered, st.dictionaries(st.sampled_from(SHARDS), st.frozensets(st.sampled_from(Need))))


@given(works, coverings)
def test_every_shard_that_needs_a_run_is_in_exactly_one_of_its_kind(work: DueWork, covered: Covered) -> None:
    runs = plan(work, covered)
    for kind in (False, True):
        found = [number for run in runs_of(runs, bulk=kind) for number in numbers(run)]
        assert len(found) == len(set(found))
        assert set(needy(work, covered, bulk=kind)) <= set(found)


@given(works, coverings)
def test_no_range_begins_or_ends_with_a_shard_that_needs_nothing(work: DueWork, covered: Covered) -> None:
    for run in plan(work, covered):
        wanted = needy(work, covered, bulk=run.lane is Lane.BULK)
        assert numbers(run)[0] in wanted
        assert numbers(run)[-1] in wanted


@given(works, coverings, st.booleans())
def test_there_are_no_more_ranges_than_gaps_and_work_demand(work: DueWork, covered: Covered, bulk: bool) -> None:
    wanted = needy(work, covered, bulk=bulk)
    runs = runs_of(plan(work, covered), bulk=bulk)
    wide_gaps = sum(after - before - 1 > BRIDGED for before, after in pairwise(wanted))
    ranges = wide_gaps + 1 if wanted else 0
    if amount(work, wanted, bulk=bulk) <= WORTH_SPLITTING:
        assert len(runs) == ranges
    else:
        assert ranges <= len(runs) <= ranges + len(SHARDS) // 16
        for run in runs:
            inside = [number for number in numbers(run) if number in wanted]
            assert amount(work, inside, bulk=bulk) <= WORTH_SPLITTING or len(numbers(run)) <= 16


@given(works, coverings)
def test_a_run_is_as_urgent_as_its_most_urgent_shard_and_bulk_work_is_never_part_of_it(
    work: DueWork, covered: Covered
) -> None:
    for run in plan(work, covered):
        inside = set[Need]().union(*(needs_of(number, work, covered) for number in numbers(run)))
        if run.lane is Lane.BULK:
            assert Need.BULK in inside
        else:
            assert run.lane is (Lane.URGENT if inside & {Need.URGENT, Need.REFRESH} else Lane.REGULAR)
        assert run.priority in {Lane.URGENT: (10,), Lane.REGULAR: (0, 5), Lane.BULK: (-10,)}[run.lane]


@given(coverings)
def test_where_nothing_is_due_and_nothing_changed_no_run_is_asked_for(covered: Covered) -> None:
    assert plan(due_work({"05": Demand(waiting=3, next_attempt_at=NOW)}), covered) == []


@given(works)
def test_what_other_runs_cover_is_not_asked_for_twice(work: DueWork) -> None:
    assert plan(work, cover(set(Need))) == []


# -- examples --


def test_a_gap_of_sixteen_shards_is_bridged_and_one_of_seventeen_is_not() -> None:
    assert [(run.first, run.last) for run in plan(due_work({"00": due(), "11": due()}))] == [("00", "11")]
    assert [(run.first, run.last) for run in plan(due_work({"00": due(), "12": due()}))] == [("00", "00"), ("12", "12")]


def test_much_work_is_cut_into_pieces_that_several_machines_can_share() -> None:
    everywhere = {shard: due(1000) for shard in SHARDS}
    assert [(run.first, run.last) for run in plan(due_work(everywhere))] == [(f"{n}0", f"{n}f") for n in range(4)]
    assert len(plan(due_work({shard: due(30) for shard in SHARDS}))) == 1


def test_bulk_work_has_runs_of_its_own_beside_those_of_the_other_lanes() -> None:
    demands = {"05": replace(due(), bulk_due=1000), "06": bulk(900), "30": due(priority=1), "31": bulk(200)}
    assert [(run.first, run.last, run.lane) for run in plan(due_work(demands))] == [
        ("05", "05", Lane.REGULAR),
        ("30", "30", Lane.URGENT),
        ("05", "06", Lane.BULK),
        ("31", "31", Lane.BULK),
    ]


def test_bulk_work_neither_splits_nor_stretches_the_runs_of_other_work() -> None:
    rollout = {shard: bulk(1000) for shard in SHARDS}
    runs = plan(due_work({**rollout, "00": replace(due(), bulk_due=1000), "10": replace(due(), bulk_due=1000)}))
    assert [(run.first, run.last) for run in runs_of(runs, bulk=False)] == [("00", "10")]
    assert [(run.first, run.last) for run in runs_of(runs, bulk=True)] == [(f"{n}0", f"{n}f") for n in range(4)]


@pytest.mark.parametrize("covered", Need)
def test_each_need_is_covered_by_itself(covered: Need) -> None:
    works = {
        Need.URGENT: (due_work({"05": due(priority=1)}), Lane.URGENT),
        Need.DUE: (due_work({"05": due()}), Lane.REGULAR),
        Need.REFRESH: (due_work(refreshes=frozenset({"05"})), Lane.URGENT),
        Need.CHANGED: (due_work(changed=frozenset({"05"})), Lane.REGULAR),
        Need.BULK: (due_work({"05": bulk()}), Lane.BULK),
    }
    for need, (work, lane) in works.items():
        assert [run.lane for run in plan(work, cover({covered}))] == ([] if need is covered else [lane])


@pytest.mark.parametrize(
    ("demand", "priority"),
    [
        (due(priority=1), 10),
        (due(dies_in=timedelta(minutes=59)), 5),
        (due(dies_in=timedelta(hours=2)), 0),
        (bulk(), -10),
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
    assert why_nothing(due_work(), Covered()) == "nothing is due; no source row changed"
    assert why_nothing(due_work({"05": waiting["05"]}, source_read_until=read_until), Covered()) == (
        "nothing is due; 2 retries wait, the next at 14:05 UTC; no source row changed since 13:59:40 UTC"
    )
    refreshing = due_work(refreshes=frozenset({"05"}))
    assert "runs are about to refresh profiles of 1 shard; no" in why_nothing(refreshing, Covered())
    assert "3 retries wait, the next at 13:59 UTC" in why_nothing(due_work(waiting), Covered())
    assert "1 retry waits, the next at 2026-03-02 13:59 UTC" in why_nothing(
        due_work({"05": Demand(waiting=1, next_attempt_at=NOW + timedelta(days=1))}), Covered()
    )
    assert why_nothing(due_work({"05": due(1200), "06": bulk()}, changed=frozenset({"07"})), Covered()) == (
        "runs are at work on the 1,201 images due in 2 shards; runs are reading changed source rows of 1 shard"
    )


def test_shards_that_are_held_back_are_told_apart_from_the_others() -> None:
    held_back = dict.fromkeys(SHARDS[:16], NOW + timedelta(minutes=12)) | {"03": NOW + timedelta(minutes=10)}
    covered = Covered({}, held_back)
    failed = "3 runs of 00-0f failed in the last 15 minutes; trying again at 14:09 UTC; elsewhere "
    work = due_work({"05": due(), "06": Demand(waiting=1, next_attempt_at=NOW)}, changed=frozenset({"07"}))
    assert why_nothing(work, covered) == f"{failed}nothing is due; no source row changed"
    assert why_nothing(replace(work, demands={"05": due(), "10": due()}), covered) == (
        f"{failed}runs are at work on the 1 image due in 1 shard; no source row changed"
    )
    one = Covered({}, {"05": NOW})
    assert why_nothing(work, one).startswith("3 runs of 05 failed in the last 15 minutes; trying again at 13:59 UTC; ")
