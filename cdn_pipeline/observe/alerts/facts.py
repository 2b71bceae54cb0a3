"""What the rules judge: the vitals, and what is looked up for alerts alone."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.bill import months_operations
from cdn_pipeline.observe.breakages import Breakages, in_words, is_absence
from cdn_pipeline.observe.cost import MonthlyCost, monthly_cost
from cdn_pipeline.observe.stats import HOUR, StorageGrowth, storage_growth
from cdn_pipeline.observe.vitals import Vitals
from cdn_pipeline.queue.intake import IS_OPEN

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

COST_FRESH_FOR = timedelta(hours=1)  # a month's figure; looking it up reads every rendition


@dataclass(frozen=True, slots=True)
class Facts:
    """`vitals` may be missing parts. The rest is None while the catalog is away, or where it is not known.

    `unknown` names what could not be looked up this time; `unmeasurable` says why, where it is an error of ours.
    """

    vitals: Vitals
    new_images: int | None = None  # of the latest hour in the vitals' overview
    growth: StorageGrowth | None = None
    cost: MonthlyCost | None = None
    budget_usd: float | None = None
    unknown: frozenset[str] = frozenset()
    unmeasurable: Mapping[str, str] = field(default_factory=dict)


class FactFinder:
    """Looks facts up, again and again; remembers what is dear for an hour, and what does not change any more."""

    def __init__(self, collection: Collection, budget_usd: float | None) -> None:
        self._collection = collection
        self._budget = budget_usd
        self._cost: MonthlyCost | None = None
        self._cost_at: datetime | None = None
        self._new_images: tuple[datetime, int] | None = None  # start of an hour that is over, and how many
        self._breakages = Breakages()

    def find(self, connection: sa.Connection, vitals: Vitals) -> Facts:
        """What holds now, by the catalog. A fact that cannot be looked up keeps no other one from being known."""
        unknown: set[str] = set()

        def look_up(name: str, find: Callable[[sa.Connection, Vitals], _T | None]) -> _T | None:
            try:
                found = find(connection, vitals)
            except Exception as error:
                connection.rollback()
                unknown.add(name)
                self._note(name, error)
                return None
            self._breakages.forget(name)
            return found

        return Facts(
            vitals=vitals,
            new_images=look_up("new_images", self._count_new_images),
            growth=look_up("growth", lambda connection, _: storage_growth(connection)),
            cost=look_up("cost", self._monthly_cost),
            budget_usd=self._budget,
            unknown=frozenset(unknown),
            unmeasurable=self._breakages.words(),
        )

    def _note(self, name: str, error: Exception) -> None:
        if is_absence(error):
            _log.warning("%s is not known just now: %s", name, in_words(error))
        else:
            self._breakages.note(name, error)

    def _count_new_images(self, connection: sa.Connection, vitals: Vitals) -> int | None:
        if vitals.overview is None or not vitals.overview.hours:
            return None
        start = vitals.overview.hours[0].start
        if self._new_images is None or self._new_images[0] != start:
            values = {"collection": self._collection.name, "start": start, "end": start + HOUR}
            self._new_images = start, connection.execute(_NEW_IMAGES, values).scalar_one()
        return self._new_images[1]

    def _monthly_cost(self, connection: sa.Connection, vitals: Vitals) -> MonthlyCost | None:
        if self._budget is None or vitals.storage is None:
            return None
        if self._cost is None or self._cost_at is None or vitals.at - self._cost_at > COST_FRESH_FOR:
            operations = months_operations(connection, vitals.traffic)
            if operations is None:
                return None
            self._cost, self._cost_at = monthly_cost(vitals.storage, operations), vitals.at
        return self._cost


# Each image's first job. What is open and what has ended since are read by their indexes.
_NEW_IMAGES = sa.text(f"""
    SELECT count(*) FROM (
        SELECT id FROM cdn_image_jobs
        WHERE collection = :collection AND job_type = 'ingest' AND {IS_OPEN}
          AND created_at >= :start AND created_at < :end
        UNION ALL
        SELECT id FROM cdn_image_jobs
        WHERE collection = :collection AND job_type = 'ingest' AND completed_at >= :start
          AND created_at >= :start AND created_at < :end
    ) AS new
""")
