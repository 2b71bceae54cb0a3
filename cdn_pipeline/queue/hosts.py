"""Hosts: turns of the rate limit and breakers, as rows of the catalog that all runs on all machines share.

A breaker is closed, open until `retry_at`, or half-open after it: then one run at a time may ask, by taking the probe,
which moves `retry_at` on. So whoever looks only compares two times, and a run that dies with the probe in hand holds
nobody up for longer than `PROBE_LEASE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.failures import FailureKind

BREAKER_FAILURES = 5  # in a row
BREAKER_OPEN = timedelta(seconds=30)  # doubled with every probe that fails
BREAKER_OPEN_LONGEST = timedelta(minutes=15)
PROBE_LEASE = timedelta(seconds=60)  # the time limit of an image

# Failures further apart are not in a row; and a breaker that nobody has probed for so long has nothing waiting behind
# it, and is as good as closed. It keeps the first look at thousands of long-dead hosts short.
_LATELY = timedelta(hours=1)
HAS_LAPSED = f"greatest(retry_at, updated_at) <= clock_timestamp() - make_interval(secs => {_LATELY.total_seconds()})"
"""Whether what a row of `cdn_hosts` says of its host's breaker is too old to count."""

# A clock that was set back must not promise turns for hours ahead.
_LONGEST_QUEUE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Breaker:
    """The breaker of one host. `retry_in` is the time until `retry_at` by the catalog's clock, as of the look."""

    host: str
    failures: int  # in a row
    failure: FailureKind | None  # the last one
    opened_at: datetime | None
    retry_at: datetime | None
    retry_in: timedelta | None

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self.opened_at is not None


def reserve_turns(connection: sa.Connection, host: str, *, turns: int, spacing: timedelta) -> timedelta:
    """Promises the host's next `turns` requests, `spacing` apart, to the caller; returns the wait until the first.

    Turns that are not used lapse: nobody else gets them.
    """
    values = {"host": host, "turns": turns, "spacing": spacing, "longest": _LONGEST_QUEUE}
    wait: timedelta = connection.execute(_RESERVE, values).scalar_one()
    return wait


_RESERVE = sa.text("""
    INSERT INTO cdn_hosts AS h (host, next_turn_at) VALUES (:host, clock_timestamp() + :turns * :spacing)
    ON CONFLICT (host) DO UPDATE
    SET next_turn_at = least(greatest(h.next_turn_at, clock_timestamp()),
                             clock_timestamp() + CAST(:longest AS interval)) + :turns * :spacing
    RETURNING next_turn_at - :turns * :spacing - clock_timestamp()
""")


def look_at_breakers(connection: sa.Connection) -> Sequence[Breaker]:
    """The breakers that are not simply closed: open, half-open, or with failures lately."""
    return [_breaker(row) for row in connection.execute(_LOOK)]


_COLUMNS = "host, failures, failure_kind, opened_at, retry_at, retry_at - clock_timestamp() AS retry_in"

_LOOK = sa.text(f"""
    SELECT {_COLUMNS} FROM cdn_hosts
    WHERE (opened_at IS NOT NULL OR failures > 0) AND NOT {HAS_LAPSED}
""")


def _breaker(row: sa.Row[Any]) -> Breaker:
    kind = FailureKind.of(row.failure_kind)
    return Breaker(row.host, row.failures, kind, row.opened_at, row.retry_at, row.retry_in)


def note_failure(
    connection: sa.Connection,
    host: str,
    kind: FailureKind,
    *,
    probing: bool = False,
    retry_after: timedelta | None = None,
) -> tuple[Breaker, bool]:
    """Notes a failure that tells of the host; returns the breaker, and whether it had been open before.

    The fifth in a row opens it, a failed probe opens it again for twice as long, and a host that says when to come
    back (`retry_after`) is left alone until then, but for no longer than any other: one image asks again whether it
    meant them all. A request that was on its way when the breaker opened changes nothing else.
    """
    values = {
        "host": host,
        "kind": kind,
        "probing": probing,
        "retry_after": min(max(retry_after or timedelta(), timedelta()), BREAKER_OPEN_LONGEST),
        "enough": BREAKER_FAILURES,
        "open": BREAKER_OPEN,
        "longest": BREAKER_OPEN_LONGEST,
    }
    connection.execute(_KNOW, {"host": host})
    connection.execute(_FORGET, {"host": host})
    row = connection.execute(_FAIL, values).one()
    return _breaker(row), row.was_open


_CLOSED = "failures = 0, failure_kind = NULL, opened_at = NULL, retry_at = NULL, times_opened = 0"

_KNOW = sa.text("INSERT INTO cdn_hosts (host) VALUES (:host) ON CONFLICT DO NOTHING")

_FORGET = sa.text(f"UPDATE cdn_hosts SET {_CLOSED} WHERE host = :host AND {HAS_LAPSED}")

# 2^5 times 30 s is more than the longest time already.
_FAIL = sa.text(f"""
    WITH before AS (
        SELECT host, times_opened, opened_at IS NOT NULL AND NOT :probing AND retry_at > clock_timestamp() AS was_open,
               opened_at IS NOT NULL AND (:probing OR retry_at <= clock_timestamp()) AS probe_failed,
               1 + failures AS failures
        FROM cdn_hosts WHERE host = :host FOR UPDATE
    ), judged AS (
        SELECT host, failures, was_open, times,
               CASE WHEN times > times_opened
                    THEN least(CAST(:open AS interval) * power(2, least(times, 6) - 1), CAST(:longest AS interval))
                    ELSE interval '0' END AS period
        FROM before CROSS JOIN LATERAL (
            SELECT times_opened + CAST(probe_failed OR NOT was_open AND failures >= :enough AS int) AS times
        ) AS counted
    ), waits AS (
        SELECT *, greatest(period, CAST(:retry_after AS interval)) AS wait FROM judged
    )
    UPDATE cdn_hosts AS h
    SET failures = w.failures, failure_kind = :kind, times_opened = w.times, updated_at = clock_timestamp(),
        opened_at = CASE WHEN wait > interval '0' THEN coalesce(opened_at, clock_timestamp()) ELSE opened_at END,
        retry_at = CASE WHEN wait = interval '0' THEN retry_at
                        WHEN was_open THEN greatest(retry_at, clock_timestamp() + wait)
                        ELSE clock_timestamp() + wait END
    FROM waits AS w WHERE h.host = w.host
    RETURNING {", ".join(f"h.{column}" for column in ("host", "failures", "failure_kind", "opened_at", "retry_at"))},
              h.retry_at - clock_timestamp() AS retry_in, was_open
""")


def note_answer(connection: sa.Connection, host: str, *, probing: bool = False) -> None:
    """Notes that the host answers: what is counted against it is forgotten, and a probe closes the breaker.

    An answer to a request that was on its way when the breaker opened does not close it.
    """
    connection.execute(_ANSWER, {"host": host, "probing": probing})


_ANSWER = sa.text(f"""
    UPDATE cdn_hosts SET {_CLOSED}, updated_at = clock_timestamp()
    WHERE host = :host AND (opened_at IS NULL OR :probing)
""")


def take_probe(connection: sa.Connection, host: str) -> tuple[Breaker | None, bool]:
    """Takes the right to ask a half-open host; returns its breaker as it is now, and whether the caller has the probe.

    There is no breaker, or a closed one, if another run's probe was answered meanwhile.
    """
    taken = connection.execute(_TAKE_PROBE, {"host": host, "lease": PROBE_LEASE}).rowcount == 1
    row = connection.execute(sa.text(f"SELECT {_COLUMNS} FROM cdn_hosts WHERE host = :host"), {"host": host}).first()
    return (_breaker(row) if row else None), taken


_TAKE_PROBE = sa.text("""
    UPDATE cdn_hosts SET retry_at = clock_timestamp() + CAST(:lease AS interval), updated_at = clock_timestamp()
    WHERE host = :host AND retry_at <= clock_timestamp()
""")
