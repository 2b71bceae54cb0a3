"""Which runs to ask for: from what is due and what already runs to the fewest contiguous ranges of shards. Pure."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from cdn_pipeline.collections import BACKFILL_PRIORITY, SHARDS

if TYPE_CHECKING:
    from cdn_pipeline.engine.due_work import DueWork

URGENT_PRIORITY = 1  # a user's request
BRIDGED = 16  # shards without need that a run takes along: a run costs about 5 s, an idle shard 0.08 s
WORTH_SPLITTING = 2_000  # due images: minutes of work, which several machines can share
DIES_SOON = timedelta(hours=1)


class Lane(StrEnum):
    """Which of the places for runs a run takes; see `tag_concurrency_limits` in dagster.yaml."""

    URGENT = "urgent"
    REGULAR = "regular"
    BULK = "bulk"


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
    """Shards that queued or running runs cover. A bulk run may take hours, so it covers nothing but bulk work."""

    shards: Set[str] = frozenset()
    by_bulk: Set[str] = frozenset()


def plan_runs(work: "DueWork", covered: Covered, *, shards_per_run: int) -> list[PlannedRun]:
    """The runs to ask for, each shard that needs one in exactly one of them.

    A shard needs a run if something is due in it or its source changed, and no run covers that. Shards that need one
    and are not far apart share it; if that is much work, it is cut into pieces of at most `shards_per_run` shards.
    """
    needs = [need for shard in SHARDS if (need := _need(shard, work)) and not _is_covered(need, covered)]
    return [_planned(piece, work.now) for joined in _joined(needs) for piece in _pieces(joined, shards_per_run)]


@dataclass(frozen=True, slots=True)
class _Need:
    number: int  # of the shard, in their order
    lane: Lane
    due: int
    dies_at: datetime | None


def _need(shard: str, work: "DueWork") -> _Need | None:
    demand = work.demands.get(shard)
    due = demand.due if demand else 0
    if not due and shard not in work.changed:
        return None
    lane = _lane(demand.best_priority if demand else None, changed=shard in work.changed)
    return _Need(SHARDS.index(shard), lane, due, demand.earliest_deadline if demand else None)


def _lane(best_priority: int | None, *, changed: bool) -> Lane:
    if best_priority is not None and best_priority <= URGENT_PRIORITY:
        return Lane.URGENT
    return Lane.REGULAR if changed or best_priority is None or best_priority < BACKFILL_PRIORITY else Lane.BULK


def _is_covered(need: _Need, covered: Covered) -> bool:
    shard = SHARDS[need.number]
    return shard in covered.shards or (need.lane is Lane.BULK and shard in covered.by_bulk)


def _joined(needs: Sequence[_Need]) -> Iterator[list[_Need]]:
    """Cuts only where a gap is too wide to bridge. Shards that are covered may be bridged: work done twice is safe."""
    joined: list[_Need] = []
    for need in needs:
        if joined and need.number - joined[-1].number - 1 > BRIDGED:
            yield joined
            joined = []
        joined.append(need)
    if joined:
        yield joined


def _pieces(joined: list[_Need], shards_per_run: int) -> Iterator[list[_Need]]:
    if sum(need.due for need in joined) <= WORTH_SPLITTING:
        yield joined
        return
    piece: list[_Need] = []
    for need in joined:
        if piece and need.number - piece[0].number >= shards_per_run:
            yield piece
            piece = []
        piece.append(need)
    yield piece


def _planned(piece: Sequence[_Need], now: datetime) -> PlannedRun:
    """The key names the minute: evaluated twice, a tick asks once; a need that a dead run left is asked for again."""
    first, last = SHARDS[piece[0].number], SHARDS[piece[-1].number]
    lane = min((need.lane for need in piece), key=list(Lane).index)
    return PlannedRun(
        first=first,
        last=last,
        lane=lane,
        priority=_priority(lane, piece, now),
        run_key=f"{first}-{last}:{lane}:{now.astimezone(UTC):%Y-%m-%dT%H:%MZ}",
    )


def _priority(lane: Lane, piece: Sequence[_Need], now: datetime) -> int:
    if lane is not Lane.REGULAR:
        return {Lane.URGENT: 10, Lane.BULK: -10}[lane]
    return 5 if any(need.dies_at and need.dies_at < now + DIES_SOON for need in piece) else 0


def why_nothing(work: "DueWork") -> str:
    """Why no run has to be asked for, in words and numbers."""
    return "; ".join([_due_words(work), *_waiting_words(work), _change_words(work)])


def _due_words(work: "DueWork") -> str:
    due = [demand.due for demand in work.demands.values() if demand.due]
    if not due:
        return "nothing is due"
    return f"runs are at work on the {_count(sum(due), 'image')} due in {_count(len(due), 'shard')}"


def _waiting_words(work: "DueWork") -> Iterator[str]:
    waiting = sum(demand.waiting for demand in work.demands.values())
    if waiting:
        next_at = min(demand.next_attempt_at for demand in work.demands.values() if demand.next_attempt_at)
        when = f"{next_at.astimezone(UTC):{'%H:%M' if next_at - work.now < timedelta(hours=12) else '%Y-%m-%d %H:%M'}}"
        yield f"{_count(waiting, 'retry', 'retries')} {'waits' if waiting == 1 else 'wait'}, the next at {when} UTC"


def _change_words(work: "DueWork") -> str:
    if work.changed:
        return f"runs are reading changed source rows of {_count(len(work.changed), 'shard')}"
    since = f" since {work.source_read_until.astimezone(UTC):%H:%M:%S} UTC" if work.source_read_until else ""
    return f"no source row changed{since}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
