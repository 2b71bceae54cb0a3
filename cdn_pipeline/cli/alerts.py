"""`cdn-pipeline alerts`: what fires, what was told, and whether messages arrive."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.text import Text

from cdn_pipeline.catalog.sessions import catalog_time, open_catalog
from cdn_pipeline.cli.sections import add_row, as_text, new_table, print_title
from cdn_pipeline.observe.alerts.book import active_alerts, resolved_alerts
from cdn_pipeline.observe.alerts.machine import Alert, Severity, State
from cdn_pipeline.observe.alerts.messages import Letter, headline, runbook_section
from cdn_pipeline.observe.alerts.receivers import Receivers
from cdn_pipeline.observe.times import distance, span
from cdn_pipeline.settings import Settings

_RECENT = 20  # resolved ones, as many as one screen has room for
_STYLES = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


def show_alerts(settings: Settings, console: Console) -> bool:
    """Shows what fires and what did; returns whether nothing does that is worse than information."""
    with open_catalog(settings) as engine, engine.connect() as connection:
        now = catalog_time(connection)
        active, resolved = active_alerts(connection), resolved_alerts(connection, _RECENT)
    firing = [alert for alert in active if alert.state is State.FIRING]
    console.print(as_text(_summary(settings, firing)))
    _print_active(console, firing, now)
    _print_pending(console, [alert for alert in active if alert.state is State.PENDING], now)
    _print_history(console, resolved, now)
    return all(alert.severity is Severity.INFO for alert in firing)


def _summary(settings: Settings, firing: Sequence[Alert]) -> str:
    fires = f"{len(firing)} firing." if firing else "Nothing fires."
    receivers = len(Receivers(settings.alert_urls).ids)
    if not receivers:
        return f"{fires} Nobody is told: set ALERT_URLS."
    return f"{fires} Receivers: {receivers}, told of {settings.alert_level} and above."


def _print_active(console: Console, alerts: Sequence[Alert], now: datetime) -> None:
    if not alerts:
        return
    print_title(console, "Firing")
    table = new_table("severity", "alert", "since", "told", "what", "runbook")
    for alert in alerts:
        severity = Text(alert.severity, style=_STYLES[alert.severity])
        since = distance(alert.since, now)
        add_row(table, severity, headline(alert), since, _told(alert, now), alert.words, runbook_section(alert.rule))
    console.print(table)


def _told(alert: Alert, now: datetime) -> str:
    if alert.telling_failed:
        return f"not everybody: {alert.telling_failed}"
    return distance(alert.told_firing_at, now) if alert.told_firing_at else "not yet"


def _print_pending(console: Console, alerts: Sequence[Alert], now: datetime) -> None:
    if not alerts:
        return
    print_title(console, "Not for long enough to be told")
    table = new_table("severity", "alert", "since", "what")
    for alert in alerts:
        add_row(table, alert.severity, headline(alert), distance(alert.since, now), alert.words)
    console.print(table)


def _print_history(console: Console, alerts: Sequence[Alert], now: datetime) -> None:
    if not alerts:
        return
    print_title(console, "Resolved")
    table = new_table("severity", "alert", "resolved", "lasted", "told", "what")
    for alert in alerts:
        ended = alert.resolved_at or now
        lasted = span((alert.clear_since or ended) - alert.since)
        told = alert.telling_failed or ("yes" if alert.told_firing_at or alert.told_resolved_at else "no")
        add_row(table, alert.severity, headline(alert), distance(ended, now), lasted, told, alert.words)
    console.print(table)


def tell_test(settings: Settings, console: Console) -> bool:
    """Sends a message that says it is a test; returns whether everybody took it."""
    answers = Receivers(settings.alert_urls).test(_TEST)
    if not answers:
        console.print(as_text("Nobody is told: set ALERT_URLS."))
    for name, problem in answers.items():
        console.print(as_text(f"{name}: taken", "green") if problem is None else as_text(problem, "red"))
    return bool(answers) and not any(answers.values())


_TEST = Letter(
    "[test] cdn_pipeline: alerts arrive here",
    "Nothing is wrong: somebody wants to know whether messages arrive (`cdn-pipeline alerts --test`).",
    Severity.INFO,
)
