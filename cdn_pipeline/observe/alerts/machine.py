"""The states of an alert, and what is to be told of it. Pure: time comes in, nothing is read or written.

pending → firing → resolved. A condition has to hold for its rule's `hold_for` before it fires, and to be over for
`clear_for` before it resolves, so that a number around its threshold is told once. A pending alert whose condition ends
is forgotten.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from uuid import UUID

VIEW_HOLDS = timedelta(minutes=2)  # evaluators look every 10 and 30 s: who has not for so long is gone
RETRY_SOONEST = timedelta(seconds=30)
RETRY_LATEST = timedelta(minutes=5)


class Severity(StrEnum):
    """How grave an alert is; declared from the least to the gravest."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """For comparisons: the graver, the higher."""
        return list(Severity).index(self)


class State(StrEnum):
    """Where an alert is."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a condition must hold before it fires, and be over before it resolves.

    `tells_end` is false for events: of those nobody wants to hear that they are over.
    """

    hold_for: timedelta
    clear_for: timedelta
    tells_end: bool = True


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that a rule finds wrong now. `subject` tells several of one rule apart: a host, a store, a job."""

    rule: str
    subject: str
    severity: Severity
    words: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition over time: a row of `cdn_alerts`. `id` is None as long as it is not stored."""

    rule: str
    subject: str
    severity: Severity  # the gravest since it fires: a number that falls below a threshold and rises again is told once
    words: str
    state: State
    since: datetime
    id: UUID | None = None
    fired_at: datetime | None = None
    clear_since: datetime | None = None
    resolved_at: datetime | None = None
    told_severity: Severity | None = None
    told_firing_at: datetime | None = None
    told_resolved_at: datetime | None = None
    untold: tuple[str, ...] | None = None  # receivers that have not taken the present message; None: all of them
    tell_after: datetime | None = None
    telling_failed: str | None = None
    seen_from: Mapping[str, datetime] = field(default_factory=dict)  # of local rules: where it holds, and seen when


def advance(alert: Alert | None, condition: Condition | None, timing: Timing, now: datetime) -> Alert | None:
    """The active alert of a rule and subject after a look, given whether its condition holds; None if there is none."""
    if condition is None:
        return _without_condition(alert, timing, now) if alert else None
    if alert is None:
        alert = Alert(condition.rule, condition.subject, condition.severity, condition.words, State.PENDING, now)
    return _with_condition(alert, condition, timing, now)


def advance_seen(
    alert: Alert | None, condition: Condition | None, place: str, timing: Timing, now: datetime
) -> Alert | None:
    """`advance`, for what looks otherwise from another place: it holds as long as somebody sees it.

    So a second place that sees it joins the alert and tells nothing, and one that does not see it ends nothing. The
    words name the places. The view of one that has not looked for `VIEW_HOLDS` counts no more.
    """
    views = alert.seen_from if alert else {}
    others = {where: at for where, at in views.items() if where != place and now - at < VIEW_HOLDS}
    if alert and others and condition is None:
        return replace(alert, seen_from=others)
    seen_from: Mapping[str, datetime] = {}
    if condition:
        seen_from = {**others, place: now}
        condition = replace(condition, words=f"{condition.words} (seen from {', '.join(sorted(seen_from))})")
    after = advance(alert, condition, timing, now)
    return replace(after, seen_from=seen_from) if after else None


def _with_condition(alert: Alert, condition: Condition, timing: Timing, now: datetime) -> Alert:
    alert = replace(alert, words=condition.words, clear_since=None)
    if alert.state is State.PENDING:
        alert = replace(alert, severity=condition.severity)
        return replace(alert, state=State.FIRING, fired_at=now) if now - alert.since >= timing.hold_for else alert
    if condition.severity.rank <= alert.severity.rank:
        return alert
    return _with_new_message(replace(alert, severity=condition.severity))


def _without_condition(alert: Alert, timing: Timing, now: datetime) -> Alert | None:
    if alert.state is State.PENDING:
        return None
    alert = replace(alert, clear_since=alert.clear_since or now)
    if alert.clear_since is None or now - alert.clear_since < timing.clear_for:
        return alert
    return _with_new_message(replace(alert, state=State.RESOLVED, resolved_at=now))


def _with_new_message(alert: Alert) -> Alert:
    """What was not delivered before is overtaken by what is to be told now."""
    return replace(alert, untold=None, tell_after=None, telling_failed=None)


class Kind(Enum):
    """What a message tells."""

    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be told of an alert, as it was at `at`, when somebody set out to tell it."""

    kind: Kind
    alert: Alert
    at: datetime


def message_due(alert: Alert, timing: Timing, level: Severity, now: datetime) -> Message | None:
    """What is to be told now to those who want to hear of alerts of this level and above.

    An alert that resolved before anybody could be told that it fires is told once, by its resolution.
    """
    if alert.tell_after is not None and now < alert.tell_after:
        return None
    wanted = alert.severity.rank >= level.rank
    if alert.state is State.FIRING and wanted and _rank(alert.told_severity) < alert.severity.rank:
        return Message(Kind.FIRING, alert, now)
    over = alert.state is State.RESOLVED and alert.told_resolved_at is None and timing.tells_end
    if over and (wanted or alert.told_severity is not None):
        return Message(Kind.RESOLVED, alert, now)
    return None


def _rank(severity: Severity | None) -> int:
    return -1 if severity is None else severity.rank


def still_to_tell(alert: Alert, receivers: Set[str]) -> Set[str]:
    """Those of the receivers that have not taken the alert's present message."""
    return receivers if alert.untold is None else receivers & set(alert.untold)


def told(alert: Alert, message: Message, answers: Mapping[str, str | None], now: datetime) -> Alert:
    """The alert after somebody set out to tell the message; `answers` say by receiver why it was not taken, or None.

    `alert` may have moved on meanwhile: then its own next message makes up for what was not delivered.
    """
    failures = {receiver: reason for receiver, reason in answers.items() if reason is not None}
    moved_on = _event(alert) != _event(message.alert)
    if message.kind is Kind.FIRING and len(failures) < max(len(answers), 1):
        alert = replace(alert, told_firing_at=alert.told_firing_at or now)
    if failures:
        return alert if moved_on else _to_be_told_again(alert, failures, now)
    if not moved_on:
        alert = _with_new_message(alert)
    if message.kind is Kind.RESOLVED:
        return replace(alert, told_resolved_at=now)
    gravest = max(alert.told_severity or message.alert.severity, message.alert.severity, key=_rank)
    return replace(alert, told_severity=gravest)


def _to_be_told_again(alert: Alert, failures: Mapping[str, str], now: datetime) -> Alert:
    wait = min(max(now - _told_since(alert), RETRY_SOONEST), RETRY_LATEST)
    reasons = "; ".join(sorted(set(failures.values())))
    return replace(alert, untold=tuple(sorted(failures)), tell_after=now + wait, telling_failed=reasons)


def _event(alert: Alert) -> tuple[State, Severity]:
    return alert.state, alert.severity


def _told_since(alert: Alert) -> datetime:
    """When what is to be told happened: the next attempt waits for as long as it has taken so far."""
    return alert.resolved_at or alert.fired_at or alert.since
