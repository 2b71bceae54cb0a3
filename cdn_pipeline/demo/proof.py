"""The proof: when every source URL is dead, every published URL still serves, byte for byte."""

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import sqlalchemy as sa

from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.observe.lookup import find_images
from cdn_pipeline.observe.standing import watch
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.store.objects import CACHE_CONTROL

_AT_ONCE = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PublishedUrl:
    """A URL of the view `cdn_image_urls`, and the SHA-256 of what it must serve."""

    url: str
    content_hash: str


@dataclass(slots=True)
class Verified:
    """How many URLs were asked, and what was wrong with which, in words."""

    asked: int = 0
    good: int = 0
    complaints: list[str] = field(default_factory=list)

    def add(self, complaint: str | None) -> None:
        """Counts one answer."""
        self.asked += 1
        if complaint is None:
            self.good += 1
        else:
            self.complaints.append(complaint)

    @property
    def holds(self) -> bool:
        """Whether something was asked and all of it was as it should be."""
        return self.asked > 0 and self.good == self.asked


def source_urls(catalog: sa.Engine) -> list[str]:
    """Every source URL that the catalog knows."""
    with catalog.connect() as connection:
        rows = connection.execute(sa.text("SELECT source_url, fallback_urls FROM cdn_image_assets")).all()
    return [url for row in rows for url in (row.source_url, *(fallback["url"] for fallback in row.fallback_urls))]


def published_urls(catalog: sa.Engine) -> list[PublishedUrl]:
    """Every URL that the view shows."""
    query = "SELECT cdn_url_256, content_hash_256, cdn_url_512, content_hash_512 FROM cdn_image_urls"
    with catalog.connect() as connection:
        rows = connection.execute(sa.text(f"{query} WHERE cdn_url_256 IS NOT NULL")).all()
    pairs = [pair for row in rows for pair in ((row[0], row[1]), (row[2], row[3]))]
    return [PublishedUrl(url, content_hash) for url, content_hash in pairs]


def verify_source_urls_are_dead(urls: Iterable[str]) -> Verified:
    """Asks every source URL; one that still gives a picture is a complaint."""

    async def complain(client: httpx.AsyncClient, url: str) -> str | None:
        status = (await client.get(url)).status_code
        return f"{url[:100]}… still answers {status}" if status < 400 else None

    return asyncio.run(_ask(complain, urls))


def verify_published_urls_serve(
    urls: Iterable[PublishedUrl], served_at: str, *, cache_control: str = CACHE_CONTROL
) -> Verified:
    """Fetches every published URL from the server at `served_at`: status, headers and bytes must be right."""

    async def complain(client: httpx.AsyncClient, published: PublishedUrl) -> str | None:
        path = httpx.URL(published.url).raw_path.decode()
        response = await client.get(f"{served_at}{path}")
        wanted = {
            "status": ("200", str(response.status_code)),
            "content type": ("image/webp", response.headers.get("content-type")),
            "cache control": (cache_control, response.headers.get("cache-control")),
            "SHA-256": (published.content_hash, hashlib.sha256(response.content).hexdigest()),
        }
        wrong = [f"{name} is {found}, not {right}" for name, (right, found) in wanted.items() if found != right]
        return f"{path}: {', '.join(wrong)}" if wrong else None

    return asyncio.run(_ask(complain, urls))


async def _ask(complain: Callable[[httpx.AsyncClient, _T], Awaitable[str | None]], things: Iterable[_T]) -> Verified:
    verified = Verified()
    places = asyncio.Semaphore(_AT_ONCE)

    async def ask(client: httpx.AsyncClient, thing: _T) -> None:
        async with places:
            try:
                verified.add(await complain(client, thing))
            except httpx.TransportError as error:
                verified.add(f"{thing}: {error!r}")

    async with httpx.AsyncClient(timeout=20.0, trust_env=False) as client:
        await asyncio.gather(*(ask(client, thing) for thing in things))
    return verified


@dataclass(frozen=True, slots=True)
class Withheld:
    """The image whose picture the origin withholds.

    `fails`: it was tried and is not published, and its URL lives, so that a retry heals it once the origin gives it.
    """

    image_id: uuid.UUID
    owner_id: str
    fails: bool


@dataclass(frozen=True, slots=True)
class CatalogState:
    """The state of all images.

    `unpublished` counts those without a URL by the kind of their last failure, except the one that fails on purpose.
    """

    images: int
    unpublished: Counter[str]
    withheld: Withheld | None  # None: there is no such image (yet)
    lost: int  # on our watch
    bytes_in: int
    bytes_out: int
    retried: int  # images that needed more than one attempt

    @property
    def failing(self) -> int:
        """Images that fail on purpose: one, until it was tried again where the origin gives its picture."""
        return int(self.withheld is not None and self.withheld.fails)

    @property
    def published(self) -> int:
        """Images that have URLs."""
        return self.images - self.unpublished.total() - self.failing

    @property
    def waiting(self) -> int:
        """Images that wait for a fresh URL: neither published, nor gone for good, nor failing on purpose."""
        return self.unpublished.total() - self.unpublished["source_gone"]


def catalog_state(catalog: sa.Engine, withheld_url: str | None = None) -> CatalogState:
    """Reads the state of all images in one transaction; `withheld_url` is one of the picture that is withheld."""
    with catalog.connect() as connection:
        withheld = _withheld(connection, withheld_url) if withheld_url else None
        on_purpose = withheld.image_id if withheld and withheld.fails else None
        unpublished = Counter(
            {row.kind: row.images for row in connection.execute(_UNPUBLISHED, {"on_purpose": on_purpose})}
        )
        row = connection.execute(_TOTALS).one()
        lost = watch(connection, INSTAGRAM).lost
    return CatalogState(
        images=row.images,
        unpublished=unpublished,
        withheld=withheld,
        lost=lost,
        bytes_in=row.bytes_in,
        bytes_out=row.bytes_out,
        retried=row.retried,
    )


def _withheld(connection: sa.Connection, url: str) -> Withheld | None:
    found = find_images(connection, INSTAGRAM, url).image_ids
    return Withheld(**connection.execute(_WITHHELD, {"id": found[0]}).mappings().one()) if found else None


_WITHHELD = sa.text(f"""
    SELECT a.id AS image_id, a.owner_id,
           u.cdn_url_256 IS NULL AND a.failure_kind IS NOT NULL AND a.url_expires_at > clock_timestamp()
               AND NOT EXISTS (SELECT FROM cdn_image_jobs WHERE asset_id = a.id AND {IS_OPEN}) AS fails
    FROM cdn_image_assets a JOIN cdn_image_urls u ON u.asset_id = a.id WHERE a.id = :id
""")

_UNPUBLISHED = sa.text("""
    SELECT coalesce(a.failure_kind, 'not tried yet') AS kind, count(*) AS images
    FROM cdn_image_urls u JOIN cdn_image_assets a ON a.id = u.asset_id
    WHERE u.cdn_url_256 IS NULL AND a.id IS DISTINCT FROM CAST(:on_purpose AS uuid) GROUP BY 1
""")

_TOTALS = sa.text("""
    SELECT (SELECT count(*) FROM cdn_image_assets) AS images,
           (SELECT coalesce(sum(original_file_size), 0) FROM cdn_image_assets) AS bytes_in,
           (SELECT coalesce(sum(file_size), 0) FROM cdn_image_renditions WHERE state = 'current') AS bytes_out,
           (SELECT count(DISTINCT asset_id) FROM cdn_image_jobs
            WHERE status = 'completed' AND retry_count > 0) AS retried
""")
