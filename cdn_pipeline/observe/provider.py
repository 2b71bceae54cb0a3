"""What the provider of fresh URLs has said of owners."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.times import at, distance


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """The last time that an owner was asked for. `answer` is `answered` or why not; None: it is not there yet."""

    owner_id: str
    asked_at: datetime
    next_ask_at: datetime
    answer: str | None
    refusals: int  # private, gone or empty, time after time

    def words(self, now: datetime) -> str:
        """What was answered, and when it is asked again, in a sentence."""
        times = f", {self.refusals} times in a row" if self.refusals > 1 else ""
        again = f"may be asked again {distance(self.next_ask_at, now)}" if self.next_ask_at > now else "may be asked"
        return f"{self.answer or 'no answer yet'}{times}, asked {at(self.asked_at, now)}; {again}"


def provider_answers(
    connection: sa.Connection, collection: Collection, owner_ids: Sequence[str]
) -> dict[str, ProviderAnswer]:
    """The last answers of these owners; those that were never asked for are left out."""
    rows = connection.execute(_ANSWERS, {"collection": collection.name, "owner_ids": list(owner_ids)}).mappings()
    return {row["owner_id"]: ProviderAnswer(**row) for row in rows}


_ANSWERS = sa.text("""
    SELECT owner_id, asked_at, next_ask_at, answer, refusals FROM cdn_provider_owners
    WHERE collection = :collection AND owner_id = ANY(:owner_ids)
""")
