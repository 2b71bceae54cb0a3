"""The book of alerts: `cdn_alerts`, written by whoever evaluates, one at a time, by the catalog's clock."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.observe.alerts.machine import (
    Alert,
    Condition,
    Message,
    Severity,
    State,
    Timing,
    advance,
    advance_seen,
    message_due,
    told,
)

# Who set out to tell and was killed is replaced after this time. Longer than any one message takes to be told: it is
# renewed before each.
CLAIM = timedelta(minutes=2)
RESOLVED_TOLD_WITHIN = timedelta(hours=24)  # nobody wants to hear later of what is long over
RESOLVED_KEPT = timedelta(days=90)  # as long as jobs

_EVALUATORS = 0x63646E_616C727473  # the key of the advisory lock; "cdn alrts"

Timings = Mapping[str, Timing]
_Key = tuple[str, str]  # rule and subject


@dataclass(frozen=True, slots=True)
class Place:
    """Where an evaluator is, and the rules that look otherwise from elsewhere: their alerts are shared by places."""

    name: str
    local_rules: Set[str]


NOWHERE = Place("", frozenset())


def evaluate(
    connection: sa.Connection,
    conditions: Sequence[Condition],
    timings: Timings,
    judged: Set[str],
    place: Place = NOWHERE,
) -> Sequence[Alert]:
    """Writes down what holds now, for the rules that could be judged; returns their active and just resolved alerts.

    Alerts of other rules stay as they are: what could not be measured is not over. An event that was written down once
    is not again: an evaluator may look at hours that another knows to be past. Evaluators take turns; the lock ends
    with the caller's transaction.
    """
    connection.execute(_TAKE_TURN, {"key": _EVALUATORS})
    now = catalog_time(connection)
    active = {(each.rule, each.subject): each for each in _read(connection, _ACTIVE, rules=sorted(judged))}
    holding = {(each.rule, each.subject): each for each in conditions if each.rule in judged}
    for key in _past_events(connection, holding.keys() - active.keys(), timings):
        del holding[key]
    changed: list[Alert] = []
    for key in sorted(active.keys() | holding.keys()):
        before, holds, timing = active.get(key), holding.get(key), timings[key[0]]
        if key[0] in place.local_rules:
            after = advance_seen(before, holds, place.name, timing, now)
        else:
            after = advance(before, holds, timing, now)
        if after is None and before is not None:
            connection.execute(_FORGET, {"id": before.id})
        elif after is not None:
            changed.append(after if after == before else _write(connection, after))
    if any(alert.state is State.RESOLVED for alert in changed):
        connection.execute(_FORGET_OLD, {"oldest": now - RESOLVED_KEPT})
    return changed


def _past_events(connection: sa.Connection, keys: Set[_Key], timings: Timings) -> Set[_Key]:
    """Those of the rules and subjects that are events, and in the book in whatever state."""
    events = sorted(key for key in keys if not timings[key[0]].tells_end)
    if not events:
        return set()
    values = {"rules": [rule for rule, _ in events], "subjects": [subject for _, subject in events]}
    return {(row.rule, row.subject) for row in connection.execute(_WRITTEN_DOWN, values)}


def record(connection: sa.Connection, alert: Alert) -> None:
    """Writes down an alert that was kept elsewhere while the catalog was away."""
    _write(connection, alert)


def claim_messages(connection: sa.Connection, timings: Timings, level: Severity) -> Sequence[Message]:
    """What is to be told now, and by the caller alone for the time of `CLAIM`."""
    now = catalog_time(connection)
    candidates = _read(connection, _CANDIDATES, oldest=now - RESOLVED_TOLD_WITHIN)
    found = [message_due(each, timings[each.rule], level, now) for each in candidates if each.rule in timings]
    return [_claim(connection, message, now) for message in found if message]


def _claim(connection: sa.Connection, message: Message, now: datetime) -> Message:
    return replace(message, alert=_write(connection, replace(message.alert, tell_after=now + CLAIM)))


def renew_claims(connection: sa.Connection, messages: Sequence[Message]) -> Sequence[Message]:
    """Those of the claimed messages that are still to be told by the caller, claimed anew from now on.

    Not so: the claim has run out and somebody else has it, or the alert has moved on and has another message.
    """
    now = catalog_time(connection)
    return [
        _claim(connection, replace(message, alert=alert), now)
        for message in messages
        for alert in _claimed(connection, message)
    ]


def release_claims(connection: sa.Connection, messages: Sequence[Message]) -> None:
    """Leaves the claimed messages to whoever is next to tell."""
    for message in messages:
        for alert in _claimed(connection, message):
            _write(connection, replace(alert, tell_after=None))


def _claimed(connection: sa.Connection, message: Message) -> Sequence[Alert]:
    """The alert, if it still is as the caller has claimed it."""
    alerts = _read(connection, _ONE, id=message.alert.id)
    return [alert for alert in alerts if alert.tell_after == message.alert.tell_after]


def note_told(connection: sa.Connection, message: Message, answers: Mapping[str, str | None]) -> None:
    """Writes down that the message was told, or which receivers did not take it and why."""
    for alert in _read(connection, _ONE, id=message.alert.id):
        _write(connection, told(alert, message, answers, catalog_time(connection)))


def active_alerts(connection: sa.Connection) -> Sequence[Alert]:
    """Pending and firing ones, the longest first."""
    return _read(connection, _ALL_ACTIVE)


def resolved_alerts(connection: sa.Connection, count: int) -> Sequence[Alert]:
    """The alerts that resolved last, at most so many, the latest first."""
    return _read(connection, _RESOLVED, count=count)


_COLUMNS = tuple(field.name for field in fields(Alert) if field.name != "id")
_SELECT = f"SELECT id, {', '.join(_COLUMNS)} FROM cdn_alerts"

_TAKE_TURN = sa.text("SELECT pg_advisory_xact_lock(:key)")
_ACTIVE = sa.text(f"{_SELECT} WHERE state <> '{State.RESOLVED}' AND rule = ANY(:rules) FOR UPDATE")
_ALL_ACTIVE = sa.text(f"{_SELECT} WHERE state <> '{State.RESOLVED}' ORDER BY since, rule, subject")
_RESOLVED = sa.text(f"{_SELECT} WHERE state = '{State.RESOLVED}' ORDER BY resolved_at DESC LIMIT :count")
_WRITTEN_DOWN = sa.text("""
    SELECT DISTINCT rule, subject FROM cdn_alerts
    JOIN unnest(CAST(:rules AS text[]), CAST(:subjects AS text[])) AS event (rule, subject) USING (rule, subject)
""")
_ONE = sa.text(f"{_SELECT} WHERE id = :id FOR UPDATE")
# Rows that somebody else claims at this moment are his.
_CANDIDATES = sa.text(f"""
    {_SELECT}
    WHERE state = '{State.FIRING}'
       OR (state = '{State.RESOLVED}' AND resolved_at > :oldest AND told_resolved_at IS NULL)
    ORDER BY since FOR UPDATE SKIP LOCKED
""")
_FORGET = sa.text("DELETE FROM cdn_alerts WHERE id = :id")
_FORGET_OLD = sa.text(f"DELETE FROM cdn_alerts WHERE state = '{State.RESOLVED}' AND resolved_at < :oldest")
_WRITE = sa.text(f"""
    INSERT INTO cdn_alerts (id, {", ".join(_COLUMNS)})
    VALUES (coalesce(CAST(:id AS uuid), gen_random_uuid()), {", ".join(f":{name}" for name in _COLUMNS)})
    ON CONFLICT (id) DO UPDATE
    SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}, updated_at = clock_timestamp()
    RETURNING id
""").bindparams(sa.bindparam("untold", type_=ARRAY(sa.Text)), sa.bindparam("seen_from", type_=JSONB))


def _write(connection: sa.Connection, alert: Alert) -> Alert:
    seen_from = {place: at.isoformat() for place, at in alert.seen_from.items()}
    stored: UUID = connection.execute(_WRITE, {**asdict(alert), "seen_from": seen_from}).scalar_one()
    return replace(alert, id=stored)


def _read(connection: sa.Connection, query: sa.TextClause, **values: Any) -> Sequence[Alert]:
    return [_as_alert(row) for row in connection.execute(query, values).mappings()]


def _as_alert(row: sa.RowMapping) -> Alert:
    told_severity, untold = row["told_severity"], row["untold"]
    return Alert(
        **{
            **row,
            "severity": Severity(row["severity"]),
            "state": State(row["state"]),
            "told_severity": None if told_severity is None else Severity(told_severity),
            "untold": None if untold is None else tuple(untold),
            "seen_from": {place: datetime.fromisoformat(at) for place, at in row["seen_from"].items()},
        }
    )
