"""Messages in words: one alert, or the digest of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cdn_pipeline.observe.alerts.machine import Alert, Kind, Message, Severity
from cdn_pipeline.observe.alerts.rules import RULES
from cdn_pipeline.observe.parts import RUNBOOK
from cdn_pipeline.observe.times import clock, span

DIGEST_ABOVE = 5  # messages at once: one for each would bury the first
_OVER = "resolved"


@dataclass(frozen=True, slots=True)
class Letter:
    """What a receiver gets, as plain text. `severity` is None where something is over."""

    title: str
    body: str
    severity: Severity | None


def batches(messages: Sequence[Message]) -> Sequence[Sequence[Message]]:
    """What is told by one letter each: every message, or all of them if they are many."""
    return [messages] if len(messages) > DIGEST_ABOVE else [[message] for message in messages]


def compose(messages: Sequence[Message]) -> Letter:
    """One letter for the messages, of which there is at least one."""
    return letter(messages[0]) if len(messages) == 1 else _digest(messages)


def letter(message: Message) -> Letter:
    """Words with numbers, since when, what to do first, and where the runbook goes on."""
    if message.kind is Kind.RESOLVED:
        return Letter(_title(_OVER, message.alert), _resolved(message.alert), None)
    return Letter(
        _title(message.alert.severity, message.alert), _firing(message.alert, message.at), message.alert.severity
    )


def runbook_section(rule: str) -> str:
    """Where to read on."""
    return f"{RUNBOOK}#{rule}"


def headline(alert: Alert) -> str:
    """What an alert is about, in a few words."""
    rule = RULES.get(alert.rule)
    title = rule.title if rule else alert.rule
    return f"{title}: {alert.subject}" if alert.subject else title


def _title(label: str, alert: Alert) -> str:
    return f"[{label}] cdn_pipeline: {headline(alert)}"


def _firing(alert: Alert, now: datetime) -> str:
    rule = RULES.get(alert.rule)
    lines = [
        _sentence(alert.words),
        f"Since {clock(alert.since)} ({span(now - alert.since)}).",
        f"First: {rule.first}" if rule else None,
        f"Runbook: {runbook_section(alert.rule)}",
    ]
    return "\n".join(line for line in lines if line)


def _resolved(alert: Alert) -> str:
    ended = alert.clear_since or alert.resolved_at or alert.since
    lines = [
        f"It lasted {span(ended - alert.since)}, from {clock(alert.since)} to {clock(ended)}.",
        f"It was: {_sentence(alert.words)}",
        None if alert.told_firing_at else "Nobody could be told while it lasted.",
        f"Runbook: {runbook_section(alert.rule)}",
    ]
    return "\n".join(line for line in lines if line)


def _digest(messages: Sequence[Message]) -> Letter:
    now = max(message.at for message in messages)
    firing = [message.alert for message in messages if message.kind is Kind.FIRING]
    resolved = [message.alert for message in messages if message.kind is Kind.RESOLVED]
    gravest = max((alert.severity for alert in firing), key=lambda severity: severity.rank, default=None)
    title = f"[{gravest or _OVER}] cdn_pipeline: {len(firing)} alerts, {len(resolved)} resolved"
    lines = [
        f"[{alert.severity}] {headline(alert)}, since {clock(alert.since)} ({span(now - alert.since)}): "
        f"{_sentence(alert.words)} {runbook_section(alert.rule)}"
        for alert in sorted(firing, key=lambda alert: -alert.severity.rank)
    ]
    lines += [f"[{_OVER}] {headline(alert)}" for alert in resolved]
    return Letter(title, "\n".join(lines), gravest)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith('.') else '.'}"
