"""The CDN against the source URLs that it stands in for: both asked for a sample of published pictures."""

import asyncio
import ssl
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from aiohttp import ClientError

from cdn_pipeline.catalog.sampling import at_random, random_start
from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.collections import Collection
from cdn_pipeline.engine.hosts import Hosts, HostShut
from cdn_pipeline.fetch.addresses import guarded_socket_factory
from cdn_pipeline.fetch.hosts import host_of
from cdn_pipeline.observe.probes import Target, problem_of
from cdn_pipeline.observe.ttfb import Answer, ask_twice
from cdn_pipeline.queue.retries import longest_wait_in_run
from cdn_pipeline.settings import Settings

_AT_ONCE = 8  # as probes: so few that none is slow because of the others


class Outcome(StrEnum):
    """What asking for a picture has come to."""

    AVAILABLE = "available"
    EXPIRED = "expired"  # says the URL itself: it was not asked for
    BROKEN = "broken"  # another status, or not that picture
    NO_ANSWER = "no answer"
    NOT_ASKED = "not asked"  # its host is left alone just now


@dataclass(frozen=True, slots=True)
class Asked:
    """A URL, asked for twice: milliseconds to the first byte of pictures, on a new connection and on an open one."""

    outcome: Outcome
    cold_ms: float | None = None
    warm_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A published picture and where it can be had: its largest rendition, and its source. Sizes in bytes."""

    image_id: uuid.UUID
    source_url: str
    expired: bool
    original_size: int | None
    rendition: Target
    rendition_sizes: tuple[int, ...]  # of every size of the recipe, the largest first


@dataclass(frozen=True, slots=True)
class Compared:
    """A picture, asked for at both places."""

    pair: Pair
    cdn: Asked
    legacy: Asked


@dataclass(frozen=True, slots=True)
class Sample:
    """Published pictures drawn at random from `published` ones, at `drawn_at` by the catalog's clock."""

    drawn_at: datetime
    published: int
    pairs: Sequence[Pair]


def draw_sample(connection: sa.Connection, collection: Collection, size: int) -> Sample:
    """Up to so many published pictures, each once."""
    values = {
        "collection": collection.name,
        "format": collection.recipe.format,
        "start": random_start(),
        "count": size,
    }
    counted = connection.execute(_PUBLISHED, values).one()
    pairs = [_pair(row) for row in connection.execute(_SAMPLE, values)]
    return Sample(counted.now, counted.published, pairs)


_IS_PUBLISHED = "a.collection = :collection AND a.removed_at IS NULL AND a.processing_completed_at IS NOT NULL"

_PUBLISHED = sa.text(f"""
    SELECT clock_timestamp() AS now, count(*) AS published FROM cdn_image_assets a WHERE {_IS_PUBLISHED}
""")


_PAIRS = f"""
    SELECT a.id, a.source_url, coalesce(a.url_expires_at <= clock_timestamp(), false) AS expired,
           a.original_file_size, r.paths, r.hashes, r.sizes
    FROM cdn_image_assets a CROSS JOIN LATERAL (
        SELECT array_agg(path ORDER BY width * height DESC) AS paths,
               array_agg(content_hash ORDER BY width * height DESC) AS hashes,
               array_agg(file_size ORDER BY width * height DESC) AS sizes
        FROM cdn_image_renditions WHERE asset_id = a.id AND state = 'current' AND format = :format
    ) AS r
    WHERE {_IS_PUBLISHED} AND r.paths IS NOT NULL
"""
_SAMPLE = sa.text(at_random(_PAIRS, "a.original_sha256"))


def _pair(row: sa.Row[Any]) -> Pair:
    target = Target(row.paths[0], row.hashes[0], _content_type(row.paths[0]))
    return Pair(row.id, row.source_url, row.expired, row.original_file_size, target, tuple(row.sizes))


def _content_type(path: str) -> str:
    return f"image/{path.rpartition('.')[2]}"


def source_bases(pairs: Sequence[Pair]) -> Sequence[str]:
    """Scheme, host and port of the sources that have not expired, each once, the most frequent first."""
    urls = [urlsplit(pair.source_url) for pair in pairs if not pair.expired]
    return [base for base, _ in Counter(f"{url.scheme}://{url.netloc}" for url in urls).most_common()]


# -- requests --


async def compare(
    settings: Settings, catalog: sa.Engine, collection: Collection, pairs: Sequence[Pair]
) -> AsyncIterator[Compared]:
    """Asks for every pair at both places, a few at once; yields each when it is done.

    Sources are asked as downloads ask them: at the rate of their host that all runs share, not while their host is left
    alone, and never at an address inside our network. What has expired is not asked for.
    """
    tls = ssl.create_default_context()
    places = asyncio.Semaphore(_AT_ONCE)
    patience = longest_wait_in_run(collection.retry)
    async with Hosts(catalog, patience=patience, allowed_networks=settings.allowed_networks) as hosts:
        hosts.see(transaction(catalog, hosts.look))
        factory = guarded_socket_factory(settings.allowed_networks)

        async def one(pair: Pair) -> Compared:
            async with places:
                url = f"{settings.public_base_url}{pair.rendition.path}"
                cdn = await _asked(partial(ask_twice, url, tls), partial(_is_rendition, pair.rendition))
                if pair.expired:
                    return Compared(pair, cdn, Asked(Outcome.EXPIRED))
                turn = partial(hosts.visit, host_of(pair.source_url))
                ask = partial(ask_twice, pair.source_url, tls, turn=turn, socket_factory=factory)
                return Compared(pair, cdn, await _asked(ask, _is_picture))

        tasks = [asyncio.ensure_future(one(pair)) for pair in pairs]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _asked(ask: Callable[[], Awaitable[tuple[Answer, Answer]]], is_good: Callable[[Answer], bool]) -> Asked:
    try:
        cold, warm = await ask()
    except HostShut:
        return Asked(Outcome.NOT_ASKED)
    except (ClientError, OSError, ValueError):
        return Asked(Outcome.NO_ANSWER)
    if not (is_good(cold) and is_good(warm)):
        return Asked(Outcome.BROKEN)
    return Asked(Outcome.AVAILABLE, cold.first_byte_ms, warm.first_byte_ms if warm.reused else None)


def _is_rendition(target: Target, answer: Answer) -> bool:
    return problem_of(answer, target) is None


def _is_picture(answer: Answer) -> bool:
    """A source says nothing of its bytes beforehand, and some say less than `image/jpeg` of them."""
    content_type = answer.content_type or ""
    return answer.status == 200 and not content_type.startswith(("text/", "application/json"))
