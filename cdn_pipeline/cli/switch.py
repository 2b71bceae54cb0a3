"""`cdn-pipeline cdn status|off|on|percentage`: whose pictures frontends are given CDN URLs of."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import sqlalchemy as sa
from rich.console import Console
from rich.text import Text

from cdn_pipeline.catalog.sessions import catalog_time, open_catalog, transaction
from cdn_pipeline.cli.actor import actor
from cdn_pipeline.cli.sections import add_row, new_table, print_title
from cdn_pipeline.cli.status import policy_words
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.times import at, clock
from cdn_pipeline.queue.audit import AuditEntry
from cdn_pipeline.queue.delivery_policy import (
    DeliveryPolicy,
    latest_changes,
    read_policy,
    set_percentage,
    switch_off,
    switch_on,
)
from cdn_pipeline.settings import Settings

_CHANGES_SHOWN = 5
_CACHES = "Frontends follow within four minutes, which is as long as caches may keep the API's answers."


def cdn_status(settings: Settings, console: Console) -> None:
    """Shows whether the CDN is on and for whom, since when, and who has changed that lately."""
    with open_catalog(settings) as engine, snapshot(engine) as at_once:
        now = catalog_time(at_once.connection)
        policy = read_policy(at_once.connection)
        changes = latest_changes(at_once.connection, _CHANGES_SHOWN)
    console.print(Text("The CDN is on: " if policy.is_on else "The CDN is ").append_text(policy_words(policy, now)))
    if not changes:
        console.print("Nobody has ever changed that: see `cdn-pipeline cdn --help`.")
        return
    print_title(console, "Last changes")
    table = new_table("when", "by", "what")
    for change in changes:
        add_row(table, at(change.at, now), change.actor, _what(change))
    console.print(table)


def _what(change: AuditEntry) -> str:
    if change.action == "cdn-percentage":
        return f"percentage set to {change.details['percentage']}"
    until = change.details["off_until"]
    if change.action == "cdn-off" and until:
        return f"off until {clock(datetime.fromisoformat(until))}"
    return change.action.removeprefix("cdn-")


def cdn_off(settings: Settings, console: Console, *, minutes: int | None) -> None:
    """Has the API answer legacy URLs, for so many minutes or until it is switched on."""
    expires_in = timedelta(minutes=minutes) if minutes else None
    _change(settings, console, partial(switch_off, actor=actor(), expires_in=expires_in))


def cdn_on(settings: Settings, console: Console) -> None:
    """Has the API answer CDN URLs again."""
    _change(settings, console, partial(switch_on, actor=actor()))


def cdn_percentage(settings: Settings, console: Console, percentage: int) -> None:
    """Has the API answer CDN URLs of so many percent of the profiles."""
    _change(settings, console, partial(set_percentage, actor=actor(), percentage=percentage))


def _change(settings: Settings, console: Console, change: Callable[[sa.Connection], DeliveryPolicy]) -> None:
    with open_catalog(settings) as engine:
        policy = transaction(engine, change)
        now = transaction(engine, catalog_time)
    console.print(Text("Delivery: ").append_text(policy_words(policy, now)).append(f". {_CACHES}"))
