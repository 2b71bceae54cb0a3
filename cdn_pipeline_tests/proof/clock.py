"""One clock for catalog and Python, which stands still between moves: what fails once fails again."""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
import time_machine

from cdn_pipeline.demo import fast_clock

START = datetime(2030, 1, 1, tzinfo=UTC)

_COUNT_FROM_START = f"""
    CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT timestamptz ''{START.isoformat()}'' + (SELECT offset_by FROM public.simulated_clock)';
    CREATE OR REPLACE FUNCTION public.now() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT public.clock_timestamp()'
"""


def install(engine: sa.Engine) -> None:
    """Makes the clock of this database stand still. Run it before `migrate`."""
    fast_clock.install(engine)
    with engine.begin() as connection:
        connection.execute(sa.text(_COUNT_FROM_START))


class StoppedClock:
    """The time everywhere, from `START` on; `close` lets Python's clock go again."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._travel = time_machine.travel(START, tick=False)
        self._python = self._travel.start()
        self.now = START
        self.advance(timedelta())

    def advance(self, by: timedelta) -> None:
        """Lets so much time pass."""
        self.now += by
        self._python.move_to(self.now)
        fast_clock.set_offset(self._engine, self.now - START)

    def close(self) -> None:
        self._travel.stop()
