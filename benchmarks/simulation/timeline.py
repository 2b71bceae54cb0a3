"""A simulation's time: clocks that are moved together, and what is to happen when."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import sqlalchemy as sa

from cdn_pipeline.demo import fast_clock

Action = Callable[[datetime], None]
Travel = Callable[[datetime], None]


class SimulatedClock:
    """The clocks of this process and of some databases, moved together. Between two moves time goes on as usual.

    Args:
        travel: moves this process's clock (`datetime.now`, `time.time`) to a moment.
        databases: in which `fast_clock` is installed.
    """

    def __init__(self, travel: Travel, *databases: sa.Engine) -> None:
        self._travel = travel
        self._databases = databases

    def move_to(self, moment: datetime) -> None:
        """Makes it this moment everywhere, in the past as well."""
        for database in self._databases:
            with database.connect() as connection:
                real: datetime = connection.execute(sa.text("SELECT pg_catalog.clock_timestamp()")).scalar_one()
            fast_clock.set_offset(database, moment - real)
        self._travel(moment)


@dataclass(order=True, slots=True)
class _Event:
    moment: datetime
    number: int
    action: Action = field(compare=False)


class Timeline:
    """What is to happen when; an action may plan others."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._events: list[_Event] = []
        self._numbers = count()

    def at(self, moment: datetime, action: Action) -> None:
        """Plans an action; it is told what time it is when its turn comes."""
        heapq.heappush(self._events, _Event(moment, next(self._numbers), action))

    def run(self, until: datetime) -> None:
        """Lets everything happen that is planned before this moment.

        The clock jumps from one action to the next, and never back: one that took long makes the next one late.
        """
        while self._events and self._events[0].moment < until:
            event = heapq.heappop(self._events)
            if datetime.now(UTC) < event.moment:
                self._clock.move_to(event.moment)
            event.action(datetime.now(UTC))
