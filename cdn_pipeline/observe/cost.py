"""What a month costs at the present rate, from what we hold and what we did ourselves."""

from dataclasses import dataclass
from datetime import date, datetime

import sqlalchemy as sa

from cdn_pipeline.observe.storage import Storage
from cdn_pipeline.observe.times import MONTH


@dataclass(frozen=True, slots=True)
class Prices:
    """Of R2's standard storage, in US dollars, without the free allowance: that is the account's, not ours alone.

    What R2 sends costs nothing, through Cloudflare's CDN or not.
    """

    as_of: date
    source: str
    gigabyte_month: float
    class_a: float  # an operation that writes or lists
    class_b: float  # one that reads


PRICES = Prices(date(2026, 11, 1), "https://developers.cloudflare.com/r2/pricing/", 0.015, 4.50 / 1e6, 0.36 / 1e6)


@dataclass(frozen=True, slots=True)
class Operations:
    """Of the last 30 days. `class_b` is None where nobody counts the readers: only Cloudflare sees them all."""

    class_a: int
    class_b: int | None


@dataclass(frozen=True, slots=True)
class MonthlyCost:
    """In US dollars."""

    storage: float
    class_a: float
    class_b: float | None

    @property
    def total(self) -> float:
        """Of what is known."""
        return self.storage + self.class_a + (self.class_b or 0.0)

    @property
    def words(self) -> str:
        """How much of what, in a sentence."""
        reads = "reads not counted" if self.class_b is None else f"reads {self.class_b:.2f} $"
        return f"a month costs {self.total:.2f} $: storage {self.storage:.2f} $, writes {self.class_a:.2f} $, {reads}"


def monthly_cost(held: Storage, operations: Operations, prices: Prices = PRICES) -> MonthlyCost:
    """What we hold, for a month, and the operations of the last one."""
    reads = operations.class_b
    return MonthlyCost(
        storage=held.bytes / 1e9 * prices.gigabyte_month,
        class_a=operations.class_a * prices.class_a,
        class_b=None if reads is None else reads * prices.class_b,
    )


def own_writes(connection: sa.Connection, since: datetime | None = None) -> int:
    """The objects that were put since then (or in the last 30 days), as far as the catalog tells, of both stores.

    Reads every rendition: half a second for two million. What was superseded and cleaned up since is not counted.
    """
    writes: int = connection.execute(_WRITES, {"month": MONTH, "since": since}).scalar_one()
    return writes


_WRITES = sa.text("""
    WITH period AS (
        SELECT coalesce(CAST(:since AS timestamptz), now() - CAST(:month AS interval)) AS since
    )
    SELECT (SELECT count(*) FROM cdn_image_renditions WHERE created_at > (SELECT since FROM period))
         + (SELECT count(*) FROM cdn_image_jobs
            WHERE completed_at > (SELECT since FROM period) AND bytes_in IS NOT NULL)
""")
