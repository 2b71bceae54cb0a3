"""Which runs to ask for: from what is due and what already runs to the fewest contiguous ranges of shards. Pure."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from cdn_pipeline.collections import SHARDS, URGENT_PRIORITY

if TYPE_CHECKING:
    from cdn_pipeline.engine.due_work import DueWork
    from cdn_pipeline.queue.demand import Demand

BRIDGED = 16  # shards without need that a run takes along: a run costs about 5 s, an idle shard 0.08 s
WORTH_SPLITTING = 2_000  # due images: minutes of work, which several machines can share
DIES_SOON = timedelta(hours=1)
TOO_MANY_FAILURES = 3  # of runs of a shard within `FAILED_LATELY`; fewer, so that a killed run is replaced at once
FAILED_LATELY = timedelta(minutes=15)


class Lane(StrEnum):
    """Which of the places for runs a run takes; see `tag_concurrency_limits` in dagster.yaml."""

    URGENT = "urgent"
    REGULAR = "regular"
    BULK = "bulk"


class Need(StrEnum):
    """Why a shard needs a run."""

    URGENT = "urgent"  # a user waits
    REFRESH = "refresh"  # a user wants a profile fetched again
    DUE = "due"  # other work is due
    CHANGED = "changed"  # source rows changed
    BULK = "bulk"  # a backfill's or a rollout's work is due


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run to ask for, of a range of shards. Dagster starts higher priorities first, and one run per key."""

    first: str
    last: str
    lane: Lane
    priority: int
    run_key: str


@dataclass(frozen=True, slots=True)
class Covered:
    """What needs no run of its own now, by shard.

    `held_back` are shards whose runs failed too often (in some lane, whose needs are among `needs`), with the time from
    which on they are tried again.
    """

    needs: Mapping[str, Set[Need]] = field(default_factory=dict)
    held_back: Mapping[str, datetime] = field(default_factory=dict)


def plan_runs(work: "DueWork", covered: Covered, *, shards_per_run: int) -> list[PlannedRun]:
    """The runs to ask for. A shard is in at most one that is bulk and in at most one that is not.

    Bulk work has runs of its own, since others leave it alone: what is new never waits behind a rollout. Shards that
    need a run and are not far apart share it; if that is much work, it is cut into pieces of at most `shards_per_run`
    shards.
    """
    needs = {shard: set(_needs(shard, work)) - covered.needs.get(shard, set()) for shard in SHARDS}
    demands = {shard: work.demands[shard] for shard in SHARDS if shard in work.demands}
    soon = [_soon(shard, needs[shard], demands.get(shard)) for shard in SHARDS if needs[shard] - {Need.BULK}]
    bulk = [_bulk(shard, demands[shard]) for shard in SHARDS if Need.BULK in needs[shard]]
    return [
        _planned(piece, work.now)
        for tasks in (soon, bulk)
        for joined in _joined(tasks)
        for piece in _pieces(joined, shards_per_run)
    ]


def _needs(shard: str, work: "DueWork") -> Iterator[Need]:
    if shard in work.refreshes:
        yield Need.REFRESH
    if shard in work.changed:
        yield Need.CHANGED
    if not (demand := work.demands.get(shard)):
        return
    if demand.best_priority is not None:
        yield Need.URGENT if demand.best_priority <= URGENT_PRIORITY else Need.DUE
    if demand.bulk_due:
        yield Need.BULK


@dataclass(frozen=True, slots=True)
class _Task:
    """What a run is to do in one shard."""

    number: int  # of the shard, in their order
    lane: Lane
    due: int
    dies_at: datetime | None = None


def _soon(shard: str, needs: Set[Need], demand: "Demand | None") -> _Task:
    lane = Lane.URGENT if needs & {Need.URGENT, Need.REFRESH} else Lane.REGULAR
    due, dies_at = (demand.due, demand.earliest_deadline) if demand else (0, None)
    return _Task(SHARDS.index(shard), lane, due, dies_at)


def _bulk(shard: str, demand: "Demand") -> _Task:
    return _Task(SHARDS.index(shard), Lane.BULK, demand.bulk_due)


def _joined(tasks: Sequence[_Task]) -> Iterator[list[_Task]]:
    """Cuts only where a gap is too wide to bridge. Shards that are covered may be bridged: work done twice is safe."""
    joined: list[_Task] = []
    for task in tasks:
        if joined and task.number - joined[-1].number - 1 > BRIDGED:
            yield joined
            joined = []
        joined.append(task)
    if joined:
        yield joined


def _pieces(joined: list[_Task], shards_per_run: int) -> Iterator[list[_Task]]:
    if sum(task.due for task in joined) <= WORTH_SPLITTING:
        yield joined
        return
    piece: list[_Task] = []
    for task in joined:
        if piece and task.number - piece[0].number >= shards_per_run:
            yield piece
            piece = []
        piece.append(task)
    yield piece


def _planned(piece: Sequence[_Task], now: datetime) -> PlannedRun:
    """The key names the minute: evaluated twice, a tick asks once; a need that a dead run left is asked for again."""
    first, last = SHARDS[piece[0].number], SHARDS[piece[-1].number]
    lane = min((task.lane for task in piece), key=list(Lane).index)
    return PlannedRun(
        first=first,
        last=last,
        lane=lane,
        priority=_priority(lane, piece, now),
        run_key=f"{first}-{last}:{lane}:{now.astimezone(UTC):%Y-%m-%dT%H:%MZ}",
    )


def _priority(lane: Lane, piece: Sequence[_Task], now: datetime) -> int:
    if lane is not Lane.REGULAR:
        return {Lane.URGENT: 10, Lane.BULK: -10}[lane]
    return 5 if any(task.dies_at and task.dies_at < now + DIES_SOON for task in piece) else 0


def why_nothing(work: "DueWork", covered: Covered) -> str:
    """Why no run has to be asked for, in words and numbers."""
    held_back = covered.held_back
    elsewhere = replace(
        work,
        demands={shard: demand for shard, demand in work.demands.items() if shard not in held_back},
        changed=work.changed - held_back.keys(),
        refreshes=work.refreshes - held_back.keys(),
    )
    words = "; ".join(
        [_due_words(elsewhere), *_waiting_words(elsewhere), *_refresh_words(elsewhere), _change_words(elsewhere)]
    )
    return f"{_failure_words(held_back)}; elsewhere {words}" if held_back else words


def _failure_words(held_back: Mapping[str, datetime]) -> str:
    shards = "-".join(dict.fromkeys((min(held_back), max(held_back))))
    minutes = FAILED_LATELY // timedelta(minutes=1)
    again = f"{min(held_back.values()).astimezone(UTC):%H:%M}"
    return f"{TOO_MANY_FAILURES} runs of {shards} failed in the last {minutes} minutes; trying again at {again} UTC"


def _due_words(work: "DueWork") -> str:
    due = [count for demand in work.demands.values() if (count := demand.due + demand.bulk_due)]
    if not due:
        return "nothing is due"
    return f"runs are at work on the {_count(sum(due), 'image')} due in {_count(len(due), 'shard')}"


def _waiting_words(work: "DueWork") -> Iterator[str]:
    waiting = sum(demand.waiting for demand in work.demands.values())
    if waiting:
        next_at = min(demand.next_attempt_at for demand in work.demands.values() if demand.next_attempt_at)
        when = f"{next_at.astimezone(UTC):{'%H:%M' if next_at - work.now < timedelta(hours=12) else '%Y-%m-%d %H:%M'}}"
        yield f"{_count(waiting, 'retry', 'retries')} {'waits' if waiting == 1 else 'wait'}, the next at {when} UTC"


def _refresh_words(work: "DueWork") -> Iterator[str]:
    if work.refreshes:
        yield f"runs are about to refresh profiles of {_count(len(work.refreshes), 'shard')}"


def _change_words(work: "DueWork") -> str:
    if work.changed:
        return f"runs are reading changed source rows of {_count(len(work.changed), 'shard')}"
    since = f" since {work.source_read_until.astimezone(UTC):%H:%M:%S} UTC" if work.source_read_until else ""
    return f"no source row changed{since}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
