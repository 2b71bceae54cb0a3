"""The bill of the present calendar month (UTC): what it has come to so far, and what it will at the present rate."""

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.cost import PRICES, MonthlyCost, Operations, Prices, monthly_cost, own_writes
from cdn_pipeline.observe.storage import Storage, storage
from cdn_pipeline.observe.times import MONTH
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.queue.states import JobStatus


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """What pictures cost in the worker processes: `images` were encoded in the last 30 days.

    `seconds_per_thousand`: of one core; None if there were none.
    """

    images: int
    seconds_per_thousand: float | None


@dataclass(frozen=True, slots=True)
class Bill:
    """In US dollars, as of `now`.

    `so_far` is of the month until now, `projected` of all of it. `operations` and `requests` are of the last 30 days;
    `writes_counted_by` is Cloudflare or the catalog, which knows of no one else's. None: nobody counts them.
    """

    now: datetime
    month_elapsed: float  # 0 to 1
    prices: Prices
    held: Storage
    operations: Operations
    writes_counted_by: str
    requests: int | None
    so_far: MonthlyCost
    projected: MonthlyCost
    processor_time: ProcessorTime
    problem: str | None  # why Cloudflare's figures are not there, if they should be


def read_bill(connection: sa.Connection, collection: Collection, traffic: Traffic | None) -> Bill:
    """Counts what we hold and did. What only Cloudflare sees is taken from its figures (None: not configured)."""
    now = catalog_time(connection).astimezone(UTC)
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    elapsed = (now - start) / timedelta(days=calendar.monthrange(now.year, now.month)[1])
    counted = traffic.class_a_operations if traffic else None
    operations = months_operations(connection, traffic) or _own_operations(connection)
    part_of_30_days = (now - start) / MONTH
    this_month = Operations(
        class_a=own_writes(connection, start) if counted is None else round(counted * part_of_30_days),
        class_b=None if operations.class_b is None else round(operations.class_b * part_of_30_days),
    )
    held = storage(connection)
    so_far = _part_of_month(monthly_cost(held, this_month), elapsed)
    return Bill(
        now=now,
        month_elapsed=elapsed,
        prices=PRICES,
        held=held,
        operations=operations,
        writes_counted_by="the catalog" if counted is None else "Cloudflare",
        requests=traffic.requests_30d if traffic else None,
        so_far=so_far,
        projected=_projected(so_far, monthly_cost(held, operations), 1 - elapsed),
        processor_time=_processor_time(connection, collection),
        problem=traffic.problem if traffic else None,
    )


def months_operations(connection: sa.Connection, traffic: Traffic | None) -> Operations | None:
    """Of the last 30 days: as Cloudflare counts them, or our own, where it is not asked.

    None: it is asked and does not tell. Our own are only a part then, without what was read.
    """
    if traffic is not None and traffic.class_a_operations is not None:
        return Operations(traffic.class_a_operations, traffic.class_b_operations)
    if traffic is not None and traffic.problem is not None:
        return None
    return _own_operations(connection)


def _own_operations(connection: sa.Connection) -> Operations:
    return Operations(own_writes(connection), class_b=None)


def _part_of_month(cost: MonthlyCost, elapsed: float) -> MonthlyCost:
    """What is held now, as if it had been held since the month began."""
    return MonthlyCost(cost.storage * elapsed, cost.class_a, cost.class_b)


def _projected(so_far: MonthlyCost, month: MonthlyCost, rest: float) -> MonthlyCost:
    """The month until now, and its rest at the rate of the last 30 days."""
    return MonthlyCost(
        so_far.storage + month.storage * rest,
        so_far.class_a + month.class_a * rest,
        None if so_far.class_b is None or month.class_b is None else so_far.class_b + month.class_b * rest,
    )


def _processor_time(connection: sa.Connection, collection: Collection) -> ProcessorTime:
    values = {"collection": collection.name, "month": MONTH}
    images, milliseconds = connection.execute(_PROCESSOR_TIME, values).one()
    return ProcessorTime(images, float(milliseconds) / images if images else None)


# Milliseconds of one picture are seconds of a thousand.
_PROCESSOR_TIME = sa.text(f"""
    SELECT count(*), coalesce(sum(transcode_ms), 0) FROM cdn_image_jobs
    WHERE collection = :collection AND completed_at > now() - CAST(:month AS interval)
      AND status = '{JobStatus.COMPLETED}' AND transcode_ms IS NOT NULL
""")
