"""`cdn-pipeline cdn off|on|percentage`: whose pictures frontends are given CDN URLs of."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import sqlalchemy as sa
from rich.console import Console
from rich.text import Text

from cdn_pipeline.catalog.sessions import catalog_time, open_catalog, transaction
from cdn_pipeline.cli.actor import actor
from cdn_pipeline.cli.status import policy_words
from cdn_pipeline.queue.delivery_policy import DeliveryPolicy, set_percentage, switch_off, switch_on
from cdn_pipeline.settings import Settings

_CACHES = "Frontends follow within four minutes, which is as long as caches may keep the API's answers."


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
