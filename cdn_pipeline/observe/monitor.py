"""Measures the vitals, for whoever asks and however often: each part by itself, and with a time limit."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time, limit_statements
from cdn_pipeline.collections import INSTAGRAM, Collection
from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.observe.breakages import Breakages, in_words, is_absence
from cdn_pipeline.observe.figures import Figures, figures
from cdn_pipeline.observe.overview import Overview, look_over
from cdn_pipeline.observe.probes import Delivery, latest_delivery
from cdn_pipeline.observe.readings import Reading
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.storage import Storage, storage
from cdn_pipeline.observe.surroundings import folder_of, fullest_disk, this_process
from cdn_pipeline.observe.traffic import Traffic, read_traffic
from cdn_pipeline.observe.vitals import RoundTrip, Vitals
from cdn_pipeline.observe.workers import Workers, workers
from cdn_pipeline.queue.heartbeats import last_beat
from cdn_pipeline.settings import Settings
from cdn_pipeline.store.objects import ObjectMissing, ObjectStore, StoreUnavailable

PATIENCE_SECONDS = 4.0  # a health request answers within five, whatever hangs
_CONNECTIONS = 8  # at least as many as there are readings of the catalog
_KEPT_CONNECTIONS = 2
_PULSE_PATIENCE_SECONDS = 0.8  # load balancers wait a second by default
_CONNECT_SECONDS = 3
_STATEMENT_SECONDS = 30  # for an overview of millions of images: whoever asked goes on without it meanwhile
_STORE_TIMEOUT = timedelta(seconds=3)
_TRAFFIC_PATIENCE_SECONDS = 1.0  # Cloudflare's figures take half a minute at times: nobody's health waits for them
_ABSENT = ".check/absent"  # nobody puts it

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Pulse:
    """What the catalog answers at once."""

    round_trip: RoundTrip
    at: datetime
    heartbeat: datetime | None
    alerts_firing: Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is being measured, or was a moment ago."""

    pulse: Future[_Pulse]
    objects: Future[RoundTrip]
    originals: Future[RoundTrip]
    overview: Future[Overview]
    workers: Future[Workers]
    figures: Future[Figures]
    delivery: Future[Delivery | None]
    storage: Future[Storage]
    traffic: Future[Traffic | None]


class Monitor:
    """Measures; several threads may ask it at once. It has its own connections: a busy pool is no illness."""

    def __init__(self, settings: Settings, catalog: sa.Engine, collection: Collection = INSTAGRAM) -> None:
        self._settings = settings
        self._collection = collection
        self._engine = own_engine(catalog, connections=_CONNECTIONS, application="cdn_pipeline monitor")
        self._breakages = Breakages()
        self._who = {
            "catalog": "the catalog",
            "objects": settings.objects_url,
            "originals": settings.originals_url,
            "traffic": "Cloudflare",
        }
        self._pulse = Reading(self._ask_catalog, fresh_for=2)
        self._objects = Reading(_StoreQuestion(settings, settings.objects_url).ask, fresh_for=2)
        self._originals = Reading(_StoreQuestion(settings, settings.originals_url).ask, fresh_for=2)
        self._workers = Reading(lambda: self._read(workers), fresh_for=5)
        self._overview = Reading(self._look_over, fresh_for=15)
        self._figures = Reading(lambda: self._read(figures), fresh_for=15)
        self._delivery = Reading(lambda: self._read(lambda connection, _: latest_delivery(connection)), fresh_for=15)
        self._storage = Reading(lambda: self._read(lambda connection, _: storage(connection)), fresh_for=60)
        self._traffic = Reading(lambda: read_traffic(settings), fresh_for=600)

    def vitals(self, patience: float = PATIENCE_SECONDS) -> Vitals:
        """Everything, as of now: at most two seconds old, what takes longer to measure at most 15 or 60.

        Takes `patience` seconds at most, and raises nothing because a part is away.
        """
        deadline = time.monotonic() + patience
        asked = self._asked()
        pulse_problem = self._problem_of("catalog", asked.pulse, deadline)
        there = pulse_problem is None
        return Vitals(
            at=asked.pulse.result().at if there else datetime.now(UTC),
            catalog=asked.pulse.result().round_trip if there else RoundTrip(None, pulse_problem),
            objects=self._round_trip("objects", asked.objects, deadline),
            originals=self._round_trip("originals", asked.originals, deadline),
            heartbeat=asked.pulse.result().heartbeat if there else None,
            overview=self._value("overview", asked.overview, deadline) if there else None,
            workers=self._value("workers", asked.workers, deadline) if there else None,
            figures=self._value("figures", asked.figures, deadline) if there else None,
            delivery=self._value("delivery", asked.delivery, deadline) if there else None,
            traffic=self._told_traffic(asked.traffic, min(deadline, time.monotonic() + _TRAFFIC_PATIENCE_SECONDS)),
            storage=self._value("storage", asked.storage, deadline) if there else None,
            alerts_firing=asked.pulse.result().alerts_firing if there else None,
            disk=fullest_disk(self._settings),
            process=this_process(),
            unmeasurable=self._breakages.words(),
        )

    def _asked(self) -> "_Asked":
        """All at once, so that the slowest one decides how long it takes."""
        return _Asked(
            pulse=self._pulse.ask(),
            objects=self._objects.ask(),
            originals=self._originals.ask(),
            overview=self._overview.ask(),
            workers=self._workers.ask(),
            figures=self._figures.ask(),
            delivery=self._delivery.ask(),
            storage=self._storage.ask(),
            traffic=self._traffic.ask(),
        )

    def catalog_problem(self, patience: float = _PULSE_PATIENCE_SECONDS) -> str | None:
        """Why the catalog does not answer; None: it does. Takes `patience` seconds at most."""
        return self._problem_of("catalog", self._pulse.ask(), time.monotonic() + patience)

    def close(self) -> None:
        """Gives back the connections that no measurement holds."""
        self._engine.dispose()

    # -- what was asked, and what became of it --

    def _problem_of(self, name: str, future: Future[Any], deadline: float) -> str | None:
        """Waits until the deadline; why there is no answer, or None."""
        try:
            future.result(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            return f"{self._who.get(name, name)} does not answer"
        except Exception as error:
            return in_words(error) if is_absence(error) else self._breakages.note(name, error)
        self._breakages.forget(name)
        return None

    def _value(self, name: str, future: Future[_T], deadline: float) -> _T | None:
        return future.result() if self._problem_of(name, future, deadline) is None else None

    def _round_trip(self, name: str, future: Future[RoundTrip], deadline: float) -> RoundTrip:
        problem = self._problem_of(name, future, deadline)
        return future.result() if problem is None else RoundTrip(None, problem)

    def _told_traffic(self, future: Future[Traffic | None], deadline: float) -> Traffic | None:
        problem = self._problem_of("traffic", future, deadline)
        return future.result() if problem is None else Traffic(problem=problem)

    # -- what is asked --

    def _ask_catalog(self) -> _Pulse:
        with self._engine.connect() as connection:
            started = time.perf_counter()
            connection.execute(sa.text("SELECT 1"))
            round_trip = RoundTrip(1000 * (time.perf_counter() - started))
            firing = {(row.rule, row.severity): row.alerts for row in connection.execute(_FIRING)}
            return _Pulse(round_trip, catalog_time(connection).astimezone(UTC), last_beat(connection), firing)

    def _look_over(self) -> Overview:
        with snapshot(self._engine) as now:
            return look_over(now, self._collection)

    def _read(self, work: Callable[[sa.Connection, Collection], _T]) -> _T:
        with self._engine.connect() as connection:
            return work(connection, self._collection)


_FIRING = sa.text("""
    SELECT rule, severity, count(*) AS alerts FROM cdn_alerts WHERE state = 'firing' GROUP BY rule, severity
""")


@contextmanager
def monitoring(settings: Settings, catalog: sa.Engine, collection: Collection = INSTAGRAM) -> Iterator[Monitor]:
    """A monitor for as long as the `with` lasts. The catalog may be away, now or later."""
    monitor = Monitor(settings, catalog, collection)
    try:
        yield monitor
    finally:
        monitor.close()


def own_engine(catalog: sa.Engine, *, connections: int, application: str) -> sa.Engine:
    """Connections to the same catalog for those who watch it: others may have all of theirs busy.

    Statements take 30 s at most. Whoever asks for it disposes of it.
    """
    engine = sa.create_engine(
        catalog.url,
        pool_size=min(connections, _KEPT_CONNECTIONS),
        max_overflow=max(connections - _KEPT_CONNECTIONS, 0),
        pool_pre_ping=True,
        connect_args={"connect_timeout": _CONNECT_SECONDS, "application_name": application},
    )
    limit_statements(engine, _STATEMENT_SECONDS)
    return engine


# -- the stores --


class _StoreQuestion:
    """Reads an object that is not there: unlike a HEAD's, a GET's 404 tells a missing key from a missing bucket."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._store: ObjectStore | None = None

    def ask(self) -> RoundTrip:
        """Times it.

        Raises:
            StoreUnavailable: the store is away, refuses our credentials, or there is no such bucket or folder.
            TimeoutError: it hangs.
        """
        self._store = self._store or open_store(self._settings, self._url, timeout=_STORE_TIMEOUT)
        started = time.perf_counter()
        asyncio.run(asyncio.wait_for(self._read(self._store), PATIENCE_SECONDS))
        return RoundTrip(1000 * (time.perf_counter() - started))

    async def _read(self, store: ObjectStore) -> None:
        folder = folder_of(self._url)
        if folder is not None and not os.access(folder, os.W_OK):
            raise StoreUnavailable(f"{self._url} is not there, or not writable: bring the folder back")
        with suppress(ObjectMissing):
            await store.get(_ABSENT)
