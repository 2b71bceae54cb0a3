"""Which owners want fresh URLs, how much the provider may still be asked, and what it answered.

Budget, rate and answers are rows of the catalog, shared by all runs, by the catalog's clock; days are UTC.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.states import ImageStatus
from cdn_pipeline.queue.tombstones import erased_owners
from cdn_pipeline.sources.app_database import LATEST_POSTS
from cdn_pipeline.sources.discovery import ImageKey
from cdn_pipeline.sources.provider import Refusal

DIES_WITHIN = timedelta(days=1)
ONCE_A_DAY = timedelta(hours=20)  # less than from one night to the next, whenever in it the owner's turn came
MAX_DAYS = 30  # between two questions for a profile that is private or gone: 2, 4, 8, 16, then so many
LATELY = timedelta(days=1)  # a profile that was private or gone then still is


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a provider may be asked: requests for one profile each."""

    provider: str
    per_day: int
    per_second: float


@dataclass(frozen=True, slots=True)
class Owner:
    """An owner with images that want fresh URLs."""

    owner_id: str
    shard: str


@dataclass(frozen=True, slots=True)
class Grant:
    """Who may be asked for, once `wait_seconds` have passed, and how many such requests are left today after that.

    Nobody is granted, and nothing is spent, if the wait is longer than whoever asks has time for.
    """

    owner_ids: frozenset[str]
    wait_seconds: float
    budget_left: int


# A post that left the owner's latest ones opens no jobs any more, so its images want no URL. An avatar has no date.
# Owners first, by the index of unfinished images: a completed image has the original of its present identity.
_SHOWN = f"""
    SELECT a.id, a.owner_id, a.shard, a.source_type, a.source_id, a.media_id, a.processing_status, a.identity,
           a.original_identity, a.url_expires_at, a.taken_at IS NULL
           OR dense_rank() OVER (PARTITION BY a.owner_id ORDER BY a.taken_at DESC NULLS LAST, a.source_id)
              <= {LATEST_POSTS} AS is_latest
    FROM cdn_image_assets a
    WHERE a.collection = :collection AND a.removed_at IS NULL"""

WAITS = f"""(a.processing_status = '{ImageStatus.PENDING}'
    AND NOT EXISTS (SELECT FROM cdn_image_jobs j WHERE j.asset_id = a.id AND {IS_OPEN}))"""

_WANTING = f"""
    WITH unfinished AS (
        SELECT DISTINCT owner_id FROM cdn_image_assets
        WHERE collection = :collection AND shard = ANY(:shards) AND removed_at IS NULL
          AND processing_status <> '{ImageStatus.COMPLETED}' AND processing_status <> '{ImageStatus.FAILED}'
    ), shown AS ({_SHOWN} AND a.owner_id IN (SELECT owner_id FROM unfinished)
    ), wanting AS (
        SELECT a.owner_id, a.shard, a.url_expires_at FROM shown a
        WHERE is_latest AND ({WAITS}
            OR (a.processing_status NOT IN ('{ImageStatus.COMPLETED}', '{ImageStatus.FAILED}')
                AND a.original_identity IS DISTINCT FROM a.identity
                AND a.url_expires_at < clock_timestamp() + CAST(:dies_within AS interval)))
    )"""


def owners_wanting_urls(
    connection: sa.Connection, collection: Collection, shards: Sequence[str], *, limit: int
) -> list[Owner]:
    """Owners that may be asked for now, the most urgent first: whose URLs die next, then who has most images waiting.

    An image wants a fresh URL if it waits for one, or if it has no original and its URL dies within the day.
    """
    rows = connection.execute(_OWNERS, {**_wanting(collection, shards), "limit": limit})
    return [Owner(row.owner_id, row.shard) for row in rows]


_OWNERS = sa.text(f"""
    {_WANTING}
    SELECT owner_id, min(shard) AS shard FROM wanting
    WHERE NOT EXISTS (
        SELECT FROM cdn_provider_owners p
        WHERE p.collection = :collection AND p.owner_id = wanting.owner_id AND p.next_ask_at > clock_timestamp())
    GROUP BY owner_id
    ORDER BY min(url_expires_at) FILTER (WHERE url_expires_at > clock_timestamp()) NULLS LAST, count(*) DESC, owner_id
    LIMIT :limit
""")


def images_wanting_urls(connection: sa.Connection, collection: Collection, shards: Sequence[str]) -> Counter[str]:
    """How many images want a fresh URL, by shard; whether their owners may be asked for now or not."""
    rows = connection.execute(_IMAGES, _wanting(collection, shards))
    return Counter({row.shard: row.images for row in rows})


_IMAGES = sa.text(f"{_WANTING} SELECT shard, count(*) AS images FROM wanting GROUP BY shard")


def _wanting(collection: Collection, shards: Sequence[str]) -> dict[str, Any]:
    return {"collection": collection.name, "shards": list(shards), "dies_within": DIES_WITHIN}


def images_of_owner(connection: sa.Connection, collection: Collection, owner_id: str) -> list[ImageKey]:
    """The images that an owner's avatar and latest posts show, as far as they are known."""
    rows = connection.execute(_OF_OWNER, {"collection": collection.name, "owner_id": owner_id})
    return [ImageKey(row.source_type, row.source_id, row.media_id) for row in rows]


_OF_OWNER = sa.text(f"""
    WITH shown AS ({_SHOWN} AND a.owner_id = :owner_id)
    SELECT source_type, source_id, media_id FROM shown WHERE is_latest
""")


# -- what may be asked --


def claim_owners(
    connection: sa.Connection,
    collection: Collection,
    allowance: Allowance,
    owner_ids: Sequence[str],
    *,
    in_turn: bool = True,
    within_seconds: float = math.inf,
) -> Grant:
    """Takes as many of these owners as today's budget allows, in their order; nobody else asks for them today.

    Whoever dies before the answer is there has used up the owner's question of the day. A question out of turn (a user
    asks) is put whatever was asked before, takes no turn away, and leaves half of the day's budget to the nights. An
    erased owner is not claimed.
    """
    erased = erased_owners(connection, collection, owner_ids)
    budget = _lock_budget(connection, allowance, in_turn=in_turn, within_seconds=within_seconds)
    wanted = [owner_id for owner_id in owner_ids if owner_id not in erased]
    claimed = connection.scalars(
        _CLAIM if in_turn else _CLAIM_OUT_OF_TURN,
        {"collection": collection.name, "owner_ids": wanted[: budget.grantable], "once_a_day": ONCE_A_DAY},
    ).all()
    return _grant(connection, allowance, budget, claimed)


_CLAIM = sa.text("""
    INSERT INTO cdn_provider_owners AS known (collection, owner_id, asked_at, next_ask_at)
    SELECT :collection, owner_id, clock_timestamp(), clock_timestamp() + CAST(:once_a_day AS interval)
    FROM unnest(CAST(:owner_ids AS text[])) AS wanted(owner_id) ORDER BY owner_id
    ON CONFLICT (collection, owner_id) DO UPDATE
    SET asked_at = excluded.asked_at, next_ask_at = excluded.next_ask_at, answer = NULL
    WHERE known.next_ask_at <= clock_timestamp()
    RETURNING owner_id
""")

_CLAIM_OUT_OF_TURN = sa.text("""
    INSERT INTO cdn_provider_owners (collection, owner_id, asked_at, next_ask_at)
    SELECT :collection, owner_id, clock_timestamp(), clock_timestamp()
    FROM unnest(CAST(:owner_ids AS text[])) AS wanted(owner_id) ORDER BY owner_id
    ON CONFLICT (collection, owner_id) DO UPDATE SET asked_at = excluded.asked_at, answer = NULL
    RETURNING owner_id
""")


def refused_lately(connection: sa.Connection, collection: Collection, owner_ids: Sequence[str]) -> dict[str, Refusal]:
    """Which of these owners were private or gone when they were asked for within the last day."""
    values = {
        "collection": collection.name,
        "owner_ids": list(owner_ids),
        "lasting": [Refusal.PRIVATE, Refusal.GONE],
        "lately": LATELY,
    }
    return {row.owner_id: Refusal(row.answer) for row in connection.execute(_REFUSED_LATELY, values)}


_REFUSED_LATELY = sa.text("""
    SELECT owner_id, answer FROM cdn_provider_owners
    WHERE collection = :collection AND owner_id = ANY(:owner_ids) AND answer = ANY(:lasting)
      AND asked_at > clock_timestamp() - CAST(:lately AS interval)
""")


def ask_again(
    connection: sa.Connection,
    allowance: Allowance,
    owner_ids: Sequence[str],
    *,
    in_turn: bool = True,
    within_seconds: float = math.inf,
) -> Grant:
    """A further question for owners that were claimed: as many as today's budget allows."""
    budget = _lock_budget(connection, allowance, in_turn=in_turn, within_seconds=within_seconds)
    return _grant(connection, allowance, budget, owner_ids[: budget.grantable])


def budget_left(connection: sa.Connection, allowance: Allowance) -> int:
    """How many requests are left today."""
    spent = connection.scalar(_SPENT, {"provider": allowance.provider}) or 0
    return max(0, allowance.per_day - spent)


@dataclass(frozen=True, slots=True)
class _Budget:
    """What is left of today's requests for questions of one sort, and how long the next one has to wait."""

    left: int
    wait_seconds: float
    in_time: bool

    @property
    def grantable(self) -> int:
        return self.left if self.in_time else 0


def _lock_budget(connection: sa.Connection, allowance: Allowance, *, in_turn: bool, within_seconds: float) -> _Budget:
    """The budget as it stands, and nobody else spends of it until the transaction ends."""
    connection.execute(_OPEN_DAY, {"provider": allowance.provider})
    wait: timedelta = connection.execute(_LOCK_DAY, {"provider": allowance.provider}).scalar_one()
    wait_seconds = max(0.0, wait.total_seconds())
    kept = 0 if in_turn else allowance.per_day // 2
    left = max(0, budget_left(connection, allowance) - kept)
    return _Budget(left, wait_seconds, in_time=wait_seconds <= within_seconds)


def _grant(connection: sa.Connection, allowance: Allowance, budget: _Budget, owner_ids: Sequence[str]) -> Grant:
    """Notes as many requests as owners."""
    requests = len(owner_ids)
    spacing = timedelta(seconds=requests / allowance.per_second)
    if requests:
        connection.execute(_SPEND, {"provider": allowance.provider, "requests": requests, "spacing": spacing})
    return Grant(frozenset(owner_ids), budget.wait_seconds, budget.left - requests)


_TODAY = "provider = :provider AND day = CAST(now() AT TIME ZONE 'UTC' AS date)"

_OPEN_DAY = sa.text("""
    INSERT INTO cdn_provider_usage (provider, day)
    VALUES (:provider, CAST(now() AT TIME ZONE 'UTC' AS date)) ON CONFLICT DO NOTHING
""")
_LOCK_DAY = sa.text(f"""
    SELECT next_request_at - clock_timestamp() FROM cdn_provider_usage WHERE {_TODAY} FOR UPDATE
""")
_SPENT = sa.text(f"SELECT requests FROM cdn_provider_usage WHERE {_TODAY}")

_SPEND = sa.text(f"""
    UPDATE cdn_provider_usage
    SET requests = requests + :requests,
        next_request_at = greatest(next_request_at, clock_timestamp()) + CAST(:spacing AS interval)
    WHERE {_TODAY}
""")


# -- what was answered --


def note_answer(
    connection: sa.Connection,
    collection: Collection,
    allowance: Allowance,
    owner_id: str,
    refusal: Refusal | None,
    *,
    in_turn: bool = True,
) -> None:
    """Notes what the question for an owner has come to; None is an answer with pictures.

    One that is private, gone, or empty however often it was asked, is asked for more and more rarely. A question out of
    turn changes nothing of that, whatever was answered: otherwise users could keep the nights from asking.
    """
    connection.execute(
        _NOTE_ANSWER,
        {
            "collection": collection.name,
            "owner_id": owner_id,
            "answer": refusal or "answered",
            "answered": refusal is None,
            "in_turn": in_turn,
            "lasting": in_turn and refusal in (Refusal.PRIVATE, Refusal.GONE, Refusal.EMPTY),
            "once_a_day": ONCE_A_DAY,
            "max_days": MAX_DAYS,
            "spare": timedelta(days=1) - ONCE_A_DAY,
        },
    )
    if refusal is None:
        connection.execute(_COUNT_ANSWERED, {"provider": allowance.provider})


_NOTE_ANSWER = sa.text("""
    UPDATE cdn_provider_owners
    SET answer = :answer,
        refusals = CASE WHEN :answered THEN 0 WHEN :lasting THEN refusals + 1 ELSE refusals END,
        next_ask_at = CASE WHEN :lasting
            THEN asked_at + least(power(2, least(refusals, 10) + 1), :max_days) * interval '1 day'
                 - CAST(:spare AS interval)
            WHEN :answered AND :in_turn THEN asked_at + CAST(:once_a_day AS interval)
            ELSE next_ask_at END
    WHERE collection = :collection AND owner_id = :owner_id
""")

_COUNT_ANSWERED = sa.text(f"UPDATE cdn_provider_usage SET answered = answered + 1, refused = NULL WHERE {_TODAY}")


def note_refused(
    connection: sa.Connection,
    collection: Collection,
    allowance: Allowance,
    owner_ids: Sequence[str],
    words: str,
    *,
    in_turn: bool = True,
) -> None:
    """Notes why the provider serves nobody, and gives back turns and requests that came to nothing."""
    if in_turn:
        connection.execute(_GIVE_BACK, {"collection": collection.name, "owner_ids": list(owner_ids)})
    connection.execute(_NOTE_REFUSED, {"provider": allowance.provider, "requests": len(owner_ids), "words": words})


_GIVE_BACK = sa.text("""
    UPDATE cdn_provider_owners SET next_ask_at = clock_timestamp()
    WHERE collection = :collection AND owner_id = ANY(:owner_ids)
""")

_NOTE_REFUSED = sa.text(f"""
    UPDATE cdn_provider_usage SET requests = greatest(requests - :requests, 0), refused = :words WHERE {_TODAY}
""")
