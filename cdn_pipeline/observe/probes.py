"""Probes of what is published: a sample of public URLs, asked for over HTTP as strangers do."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import partial

import sqlalchemy as sa
from aiohttp import ClientError

from cdn_pipeline.catalog.sampling import at_random, random_start
from cdn_pipeline.catalog.sessions import transaction
from cdn_pipeline.cloudflare.analytics import FROM_CACHE
from cdn_pipeline.observe.thresholds import FIRST_BYTE_MS
from cdn_pipeline.observe.ttfb import Answer, ask_twice
from cdn_pipeline.queue.states import JobStatus
from cdn_pipeline.store.objects import is_cache_control

SAMPLE = 200
MAX_SAMPLES = 20

_AT_ONCE = 8  # few, so that none is slow because of the others
_ROUND_SECONDS = 120.0  # what was not asked by then is left out
_RECENT_JOBS = 1000  # among whose images the latest publications are looked for
_NO_CACHE = ("no-store", "no-cache", "private")


class Problem(StrEnum):
    """`cdn_delivery_probes.problem`: why whoever asks for a URL does not get its picture as it should be."""

    NO_ANSWER = "no answer"
    STATUS = "another status than 200"
    BYTES = "other bytes"
    CONTENT_TYPE = "another content type"
    CACHE_CONTROL = "headers that keep caches from it"


@dataclass(frozen=True, slots=True)
class Target:
    """A rendition that is current, and what its URL should give."""

    path: str
    content_hash: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Probe:
    """What a URL gave: a row of `cdn_delivery_probes`. Milliseconds are told of pictures only."""

    path: str
    problem: Problem | None = None
    status: int | None = None
    cold_ms: float | None = None
    warm_ms: float | None = None
    cold_cache: str | None = None
    warm_cache: str | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Nearest-rank percentiles of `n` measurements."""

    n: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """The latest round of probes, `n` of them, `broken` with a problem; `samples` names up to 20 of those.

    Milliseconds to the first byte: `cold` on new connections, `warm` on open ones; `hit` and `miss` are the cold ones
    by whether the CDN's cache had the picture. None: nothing was measured, or no cache has said what it did.
    `share_in_time` is the share of warm answers within `thresholds.FIRST_BYTE_MS`. `hit_ratio` is of first requests:
    the second one finds what the first has put into the cache.
    """

    probed_at: datetime
    n: int
    broken: int
    samples: tuple[str, ...]
    cold: Percentiles | None
    warm: Percentiles | None
    hit: Percentiles | None
    miss: Percentiles | None
    share_in_time: float | None
    hit_ratio: float | None


def probe_published(catalog: sa.Engine, base_url: str, *, sample: int = SAMPLE) -> int:
    """Asks for a sample of the published URLs under `base_url` and writes what they gave; returns how many.

    Half of them were published last, the others are drawn at random. What fails is asked for once more, and is left out
    if it is not current any more by then.
    """
    with catalog.connect() as connection:
        targets = draw_targets(connection, sample)
    probes = {probe.path: probe for probe in asyncio.run(probe_targets(base_url, targets))}
    failed = [target for target in targets if target.path in probes and probes[target.path].problem]
    probes |= {probe.path: probe for probe in asyncio.run(probe_targets(base_url, failed))}
    return transaction(catalog, partial(write_probes, probes=list(probes.values())))


def draw_targets(connection: sa.Connection, sample: int) -> list[Target]:
    """Up to so many current renditions, one per path."""
    recent = connection.execute(_RECENT, {"jobs": _RECENT_JOBS, "count": sample // 2}).mappings()
    others = connection.execute(_AT_RANDOM, {"start": random_start(), "count": sample}).mappings()
    drawn = {row["path"]: Target(**row) for rows in (recent, others) for row in rows}
    return list(drawn.values())[:sample]


_TARGET = "r.path, r.content_hash, 'image/' || r.format AS content_type"

# By the index of finished jobs: nothing is published but by a job. 7 ms in a million renditions.
_RECENT = sa.text(f"""
    SELECT {_TARGET} FROM (
        SELECT DISTINCT asset_id FROM (
            SELECT asset_id, status FROM cdn_image_jobs
            WHERE completed_at IS NOT NULL ORDER BY completed_at DESC LIMIT :jobs) AS finished
        WHERE status = '{JobStatus.COMPLETED}') AS published
    JOIN cdn_image_renditions r ON r.asset_id = published.asset_id AND r.state = 'current'
    ORDER BY r.published_at DESC NULLS LAST, r.id LIMIT :count
""")

_CURRENT = f"SELECT {_TARGET} FROM cdn_image_renditions r WHERE r.state = 'current'"
_AT_RANDOM = sa.text(at_random(_CURRENT, "r.original_sha256"))


# -- requests --


async def probe_targets(base_url: str, targets: Sequence[Target]) -> list[Probe]:
    """Probes as many of the targets as two minutes allow, a few at once."""
    done: list[Probe] = []
    places = asyncio.Semaphore(_AT_ONCE)
    tls = ssl.create_default_context()

    async def probe(target: Target) -> None:
        async with places:
            done.append(await _probe(base_url, target, tls))

    with suppress(TimeoutError):
        async with asyncio.timeout(_ROUND_SECONDS), asyncio.TaskGroup() as group:
            for target in targets:
                group.create_task(probe(target))
    return done


async def _probe(base_url: str, target: Target, tls: ssl.SSLContext) -> Probe:
    try:
        cold, warm = await ask_twice(f"{base_url}{target.path}", tls)
    except (ClientError, OSError, ValueError):
        return Probe(target.path, Problem.NO_ANSWER)
    for answer in (cold, warm):
        if problem := problem_of(answer, target):
            return Probe(target.path, problem, answer.status)
    return Probe(
        target.path,
        status=cold.status,
        cold_ms=cold.first_byte_ms,
        warm_ms=warm.first_byte_ms if warm.reused else None,
        cold_cache=_cache_status(cold),
        warm_cache=_cache_status(warm),
    )


def problem_of(answer: Answer, target: Target) -> Problem | None:
    """What is wrong with an answer, the gravest first."""
    if answer.status != 200:
        return Problem.STATUS
    if answer.sha256 != target.content_hash:
        return Problem.BYTES
    if answer.content_type != target.content_type:
        return Problem.CONTENT_TYPE
    return None if _may_be_kept(answer.cache_control) else Problem.CACHE_CONTROL


def _may_be_kept(cache_control: str | None) -> bool:
    """Whether it is our header, or one that a rule of the CDN has put in its place and that lets caches keep it."""
    directives = [directive.strip().lower() for directive in (cache_control or "").split(",")]
    ages = [directive.partition("=")[2] for directive in directives if directive.startswith(("max-age=", "s-maxage="))]
    is_kept = any(age.isdecimal() and int(age) > 0 for age in ages) and not set(directives) & set(_NO_CACHE)
    return is_kept or is_cache_control(cache_control)


def _cache_status(answer: Answer) -> str | None:
    return answer.cache_status and answer.cache_status.lower()[:20]


# -- rows --


def write_probes(connection: sa.Connection, probes: Sequence[Probe]) -> int:
    """Writes a round of probes, without those of renditions that are not current any more; returns how many.

    Their rows are locked before: an erasure that comes at this moment waits, and then finds the probes as well.
    """
    current = set(connection.scalars(_LOCK_CURRENT, {"paths": [probe.path for probe in probes]}))
    rows = [
        {column.name: getattr(probe, column.name) for column in fields(Probe)}
        for probe in probes
        if probe.path in current
    ]
    if rows:
        connection.execute(_INSERT, rows)
    return len(rows)


_LOCK_CURRENT = sa.text("""
    SELECT path FROM cdn_image_renditions WHERE path = ANY(:paths) AND state = 'current' ORDER BY id FOR KEY SHARE
""")

_INSERT = sa.text("""
    INSERT INTO cdn_delivery_probes (path, problem, status, cold_ms, warm_ms, cold_cache, warm_cache)
    VALUES (:path, :problem, :status, :cold_ms, :warm_ms, :cold_cache, :warm_cache)
""")


def latest_delivery(connection: sa.Connection) -> Delivery | None:
    """The latest round of probes; None before the first."""
    values = {"hits": sorted(FROM_CACHE), "in_time": FIRST_BYTE_MS}
    row = connection.execute(_LATEST, values).mappings().one_or_none()
    if row is None:
        return None
    samples = connection.scalars(_SAMPLES, {"probed_at": row["probed_at"], "count": MAX_SAMPLES})
    return Delivery(
        probed_at=row["probed_at"],
        n=row["n"],
        broken=row["broken"],
        samples=tuple(samples),
        cold=_percentiles(row, "cold"),
        warm=_percentiles(row, "warm"),
        hit=_percentiles(row, "hit"),
        miss=_percentiles(row, "miss"),
        share_in_time=row["in_time"] / row["warm_n"] if row["warm_n"] else None,
        hit_ratio=row["hits"] / row["told"] if row["told"] else None,
    )


def _percentiles(row: sa.RowMapping, name: str) -> Percentiles | None:
    values = row[name]
    return Percentiles(row[f"{name}_n"], *values) if values else None


def _measured(name: str, column: str, condition: str = "true") -> str:
    """Two columns: how many were measured, and their percentiles (null without any)."""
    return f"""
        count({column}) FILTER (WHERE {condition}) AS {name}_n,
        percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY {column}) FILTER (WHERE {condition}) AS {name}
    """


_IS_HIT = "cold_cache = ANY(CAST(:hits AS text[]))"

_LATEST = sa.text(f"""
    SELECT probed_at, count(*) AS n, count(problem) AS broken,
           {_measured("cold", "cold_ms")},
           {_measured("warm", "warm_ms")},
           {_measured("hit", "cold_ms", _IS_HIT)},
           {_measured("miss", "cold_ms", f"NOT {_IS_HIT}")},
           count(*) FILTER (WHERE warm_ms < :in_time) AS in_time,
           count(*) FILTER (WHERE {_IS_HIT}) AS hits,
           count(cold_cache) AS told
    FROM cdn_delivery_probes
    WHERE probed_at = (SELECT max(probed_at) FROM cdn_delivery_probes)
    GROUP BY probed_at
""")

_SAMPLES = sa.text("""
    SELECT path || ': ' || problem || coalesce(' (' || nullif(status, 200) || ')', '') FROM cdn_delivery_probes
    WHERE probed_at = :probed_at AND problem IS NOT NULL ORDER BY id LIMIT :count
""")
