"""The watcher beside the API: it measures every ten seconds, and tells what nobody else can.

Dagster's daemon cannot tell that it is dead, nor the catalog that it is away. So of the latter the state is kept in
memory until the catalog is back; several watchers would each tell it.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol
from uuid import uuid4

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import is_away
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.observe.alerts.book import record
from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.alerts.machine import Alert, State, advance, message_due, told
from cdn_pipeline.observe.alerts.rounds import Evaluator
from cdn_pipeline.observe.alerts.rules import CATALOG_UNREACHABLE
from cdn_pipeline.observe.monitor import own_engine
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.settings import Settings

WATCH_EVERY = timedelta(seconds=10)

_log = logging.getLogger(__name__)


class Measures(Protocol):
    """What takes the vitals: a `Monitor`."""

    def vitals(self) -> Vitals:
        """Everything, as of now; raises nothing because a part is away."""


class Watcher:
    """Looks when it is told to; `watching` tells it to every ten seconds."""

    def __init__(self, settings: Settings, catalog: sa.Engine, collection: Collection = INSTAGRAM) -> None:
        """Knows the receivers.

        Raises:
            ConfigurationError: ALERT_URLS holds a URL that apprise does not understand.
        """
        self._catalog = catalog
        self._evaluator = Evaluator(settings, catalog, collection, program="api")
        self._catalog_away: Alert | None = None

    def look(self, vitals: Vitals) -> None:
        """Judges the vitals, writes down what holds, and tells whoever has to hear of it."""
        self._look_at_catalog(vitals)
        if vitals.catalog.answered:
            self._evaluator.evaluate(vitals)

    def _look_at_catalog(self, vitals: Vitals) -> None:
        """Keeps the alert in memory while it fires. Then the catalog gets it, and its end is told from there."""
        found = CATALOG_UNREACHABLE.conditions(Facts(vitals))
        # By the catalog's clock when it answers, else by this machine's: they agree to a second or so.
        alert = advance(self._catalog_away, found[0] if found else None, CATALOG_UNREACHABLE.timing, vitals.at)
        if alert is not None and alert.state is State.RESOLVED:
            with self._catalog.begin() as connection:
                record(connection, alert)
            alert = None
        self._catalog_away = self._told(replace(alert, id=alert.id or uuid4()), vitals) if alert else None

    def _told(self, alert: Alert, vitals: Vitals) -> Alert:
        receivers = self._evaluator.receivers
        message = message_due(alert, CATALOG_UNREACHABLE.timing, self._evaluator.level, vitals.at)
        if message is None or not receivers.ids:
            return alert
        [answers] = receivers.telling().tell([message])
        return told(alert, message, answers, vitals.at)


@contextmanager
def watching(
    settings: Settings, catalog: sa.Engine, monitor: Measures, collection: Collection = INSTAGRAM
) -> Iterator[Watcher]:
    """A watcher in a thread of its own for as long as the `with` lasts.

    Raises:
        ConfigurationError: ALERT_URLS holds a URL that apprise does not understand.
    """
    # Connections of its own: it watches just when others have all of theirs busy.
    own = own_engine(catalog, connections=2, application="cdn_pipeline alerts")
    watcher, ended = Watcher(settings, own, collection), threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_EVERY.total_seconds()):
            _look_once(watcher, monitor)

    # A daemon: whoever hangs while being told keeps no process from ending.
    thread = threading.Thread(target=watch, name="alerts", daemon=True)
    thread.start()
    try:
        yield watcher
    finally:
        ended.set()
        thread.join(WATCH_EVERY.total_seconds())
        own.dispose()


def _look_once(watcher: Watcher, monitor: Measures) -> None:
    """A look that fails is no reason not to look again."""
    try:
        watcher.look(monitor.vitals())
    except Exception as error:
        if is_away(error):
            _log.warning("the catalog went away while alerts were evaluated: %s", type(error).__name__)
        else:
            _log.exception("evaluating alerts failed")
