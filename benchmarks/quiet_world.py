"""The world of a quiet night: an application's rows whose URLs can all be signed again, a catalog that has published
every image of theirs, an origin that counts, and a meter of CPU.

The catalog is what discovery itself wrote of the rows, made published in SQL.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zlib import crc32

import psutil
import sqlalchemy as sa
from aiohttp import web

from benchmarks.jobs import run_job
from cdn_pipeline.catalog.sessions import open_catalog, open_demo_database
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.settings import Settings
from cdn_pipeline.sources.app_database import LATEST_POSTS

IMAGES_PER_PROFILE = 1 + LATEST_POSTS
RENDITION = b"x" * 20_000  # what the store has of every image: the night's check looks at sizes
_LOOK_EVERY_SECONDS = 0.05


class Meter(threading.Thread):
    """CPU seconds of Postgres and of all that this process has started, ended or not; this process does not count."""

    def __init__(self, postgres: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._postgres = postgres
        self._readings: list[tuple[float, float]] = []  # by the clock
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self._look()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()
        self._look()

    def run(self) -> None:
        """Looks again and again."""
        while not self._stopped.wait(_LOOK_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        ended = os.times()
        started = _cpu_of(psutil.Process().children(recursive=True))
        postgres = _cpu_of([self._postgres, *self._postgres.children()])
        self._readings.append((time.time(), ended.children_user + ended.children_system + started + postgres))

    @property
    def seconds(self) -> float:
        """On the clock."""
        return self._readings[-1][0] - self._readings[0][0]

    def cpu(self, until: float = float("inf")) -> float:
        """From the beginning until this moment."""
        return max(cpu for moment, cpu in self._readings if moment <= until) - self._readings[0][1]


def _cpu_of(processes: Sequence[psutil.Process]) -> float:
    """Of these, and of those that they have seen end."""
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


class Origin:
    """Answers every path with a photograph of 1080 px of its own, but those that were renamed with the same; counts."""

    def __init__(self) -> None:
        self.downloads = 0
        self._bodies = [make_photograph(seed, width=1080, height=1080, quality=80) for seed in range(64)]

    def application(self) -> web.Application:
        """As an aiohttp application."""
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        self.downloads += 1
        picture = request.path.replace("_r", "_n").encode()
        # What follows the end of a JPEG makes it another one; decoders stop before it.
        body = self._bodies[crc32(picture) % len(self._bodies)] + picture
        return web.Response(body=body, content_type="image/jpeg")


@dataclass(frozen=True, slots=True)
class Night:
    """What one run cost; CPU in seconds."""

    seconds: float
    cpu: float
    observing_cpu: float  # from the start of the run until the last row was read and compared
    fresh: int  # images of which the catalog has a fresher URL now
    jobs: int  # that were opened
    encoded: int  # by them
    downloads: int

    @property
    def other_cpu(self) -> float:
        """Of everything that comes after: jobs, checks, and the shards' events."""
        return self.cpu - self.observing_cpu


@dataclass(frozen=True, slots=True)
class World:
    """Where the nights happen."""

    var: Path
    source: sa.Engine
    catalog: sa.Engine
    origin: Origin
    postgres: psutil.Process

    def fill(self, images: int, origin_url: str) -> None:
        """Profiles with an avatar and twelve posts, all of them published."""
        values = {"profiles": images // IMAGES_PER_PROFILE, "posts": LATEST_POSTS, "origin": origin_url}
        with self.source.begin() as connection:
            for function in _FUNCTIONS:
                connection.execute(function)
            for insert in (_PROFILES, _POSTS):
                connection.execute(insert, values)
        for _ in discover(self.source, self.catalog, INSTAGRAM, SHARDS):
            pass
        published = {"recipe": INSTAGRAM.recipe.name, "version": INSTAGRAM.recipe.version}
        published |= {"size": len(RENDITION), "hash": hashlib.sha256(RENDITION).hexdigest()}
        with self.catalog.begin() as connection:
            for statement in (_COMPLETE_IMAGES, _COMPLETE_JOBS, _RENDITIONS):
                connection.execute(statement, published)
            for path in connection.scalars(sa.text("SELECT DISTINCT path FROM cdn_image_renditions")):
                file = self.var / "objects" / path.removeprefix("/")
                file.parent.mkdir(parents=True)
                file.write_bytes(RENDITION)

    def sign_again(self, *, replaced_percent: int = 0, renamed_percent: int = 0) -> None:
        """Gives every row fresh URLs, some of them of another picture.

        To be renamed is to be the picture that was put there before, under another name.
        """
        old, new = ("_n_n.jpg", "_r_n.jpg") if renamed_percent else ("_n.jpg", "_n_n.jpg")
        values = {"percent": replaced_percent or renamed_percent, "old": old, "new": new}
        with self.source.begin() as connection:
            for update in (_SIGN_PROFILES, _SIGN_POSTS):
                connection.execute(update, values)

    def night(self, last_shard: str = SHARDS[-1]) -> Night:
        """Runs the nightly job from the first shard to this one; exits if it fails.

        What the night before left to Postgres is done before: it would be counted, or not, as chance has it.
        """
        for engine in (self.source, self.catalog):
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sa.text("VACUUM ANALYZE"))
                connection.execute(sa.text("CHECKPOINT"))
        downloads, jobs, encoded = self.origin.downloads, self._count(_JOBS), self._count(_ENCODED)
        expiry = self._count(_LATEST_EXPIRY)
        with Meter(self.postgres) as meter:
            watched = run_job(self.var, job="nightly_freshness", last=last_shard)
        if watched.exit_status != 0:
            log = (self.var / "job.log").read_text()
            sys.exit(f"the night ended with status {watched.exit_status}:\n{log[-4000:]}")
        return Night(
            seconds=meter.seconds,
            cpu=meter.cpu(),
            observing_cpu=meter.cpu(until=self._count(_SCANNED_AT)),
            fresh=round(self._count(_FRESHER, expiry=expiry)),
            jobs=round(self._count(_JOBS) - jobs),
            encoded=round(self._count(_ENCODED) - encoded),
            downloads=self.origin.downloads - downloads,
        )

    def picture_urls(self, limit: int) -> Sequence[str]:
        """URLs of pictures, each another one."""
        with self.source.connect() as connection:
            query = sa.text("SELECT display_url FROM posts LIMIT :limit")
            return connection.scalars(query, {"limit": limit}).all()

    def least_cpu(self) -> float:
        """CPU seconds that Postgres takes to write other URLs into all rows of the catalog, in one statement."""
        with Meter(self.postgres) as meter, self.catalog.begin() as connection:
            connection.execute(_WRITE_URLS)
        return meter.cpu()

    def _count(self, query: str, **values: float) -> float:
        with self.catalog.connect() as connection:
            return float(connection.scalar(sa.text(query), values) or 0)


@contextmanager
def world(folder: Path) -> Iterator[tuple[World, str]]:
    """A world without rows, all of it in the folder, and the URL of its origin."""
    settings = Settings(_env_file=None, cdn_pipeline_var_dir=folder)  # type: ignore[call-arg]
    origin = Origin()
    with (
        open_demo_database(settings) as source,
        open_catalog(settings) as catalog,
        in_thread(listening(origin.application())) as url,
    ):
        create_tables(source)
        file = next((folder / "postgres").rglob("postmaster.pid"))
        yield World(folder, source, catalog, origin, psutil.Process(int(file.read_text().split()[0]))), url


_JOBS = "SELECT count(*) FROM cdn_image_jobs"
_ENCODED = "SELECT count(DISTINCT original_sha256) FROM cdn_image_renditions"
_SCANNED_AT = "SELECT extract(epoch FROM max(fully_scanned_at)) FROM cdn_source_watermarks"
_LATEST_EXPIRY = "SELECT extract(epoch FROM max(url_expires_at)) FROM cdn_image_assets"
_FRESHER = "SELECT count(*) FROM cdn_image_assets WHERE extract(epoch FROM url_expires_at) > :expiry"

_WRITE_URLS = sa.text("""
    UPDATE cdn_image_assets SET source_url = source_url || 'x', url_expires_at = url_expires_at + interval '1 s'
""")

# Rows as wide as production's: URLs have some 450 characters.
_FUNCTIONS = [
    sa.text("""
        CREATE FUNCTION signed(unsigned text) RETURNS text LANGUAGE sql AS $$
            SELECT unsigned || '&_nc_ohc=' || left(md5(random()::text), 23) || '&edm=ABmJApABAAAA&ccb=7-5&oh=00_Af'
                   || left(md5(random()::text) || md5(random()::text), 43) || '&oe='
                   || upper(to_hex(extract(epoch FROM now() + interval '4 days')::bigint)) || '&_nc_sid=8b3546'
        $$"""),
    sa.text("""
        CREATE FUNCTION url(origin text, file text, transform text) RETURNS text LANGUAGE sql AS $$
            SELECT signed(origin || '/v/' || file || '_n.jpg?stp=' || transform
                          || '&efg=eyJ2ZW5jb2RlX3RhZyI6ImltYWdlX3VybGdlbi4xNDQweDE4MDAuc2RyIn0'
                          || '&_nc_ht=scontent-fra5-2.cdninstagram.com&_nc_cat=104')
        $$"""),
    sa.text("""
        CREATE FUNCTION signed_again(url text, id uuid, percent int, old text, new text) RETURNS text LANGUAGE sql AS $$
            SELECT signed(split_part(
                CASE WHEN ('x' || right(id::text, 4))::bit(16)::int % 100 < percent
                THEN replace(url, old, new) ELSE url END, '&_nc_ohc=', 1))
        $$"""),
]

_PROFILES = sa.text("""
    INSERT INTO profiles (id, username, profile_pic_url, profile_pic_url_hd, updated_at)
    SELECT id, 'p' || n, url(:origin, 't51.2885-19/' || id, 'dst-jpg_s150x150'),
           url(:origin, 't51.2885-19/' || id, 'dst-jpg_s320x320'), now()
    FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(1, :profiles) AS n) AS drawn
""")

_POSTS = sa.text("""
    INSERT INTO posts (id, profile_id, media_id, display_url, thumbnail_src, taken_at, updated_at)
    SELECT id, profile_id, (3000000000000000000 + row_number() OVER ())::text,
           url(:origin, 't51.2885-15/' || id, 'dst-jpg_e35_p1080x1080'),
           url(:origin, 't51.2885-15/' || id, 'c0.180.1440.1440a_dst-jpg_e35_s640x640'),
           now() - make_interval(days => n), now()
    FROM (SELECT gen_random_uuid() AS id, p.id AS profile_id, n
          FROM profiles p, generate_series(1, :posts) AS n) AS drawn
""")

_SIGN_PROFILES = sa.text("""
    UPDATE profiles SET updated_at = now(), profile_pic_url = signed_again(profile_pic_url, id, :percent, :old, :new),
                        profile_pic_url_hd = signed_again(profile_pic_url_hd, id, :percent, :old, :new)
""")

_SIGN_POSTS = sa.text("""
    UPDATE posts SET updated_at = now(), display_url = signed_again(display_url, id, :percent, :old, :new),
                     thumbnail_src = signed_again(thumbnail_src, id, :percent, :old, :new)
""")

_COMPLETE_IMAGES = sa.text("""
    UPDATE cdn_image_assets
    SET original_sha256 = encode(sha256(uuid_send(id)), 'hex'), original_identity = identity, original_rank = rank,
        original_width = 1080, original_height = 1080, original_format = 'jpeg', original_file_size = 110000,
        placeholder = 'LEHV6nWB2yk8pyo0adR*.7kCMdnj', processing_status = 'completed', processing_completed_at = now()
""")

_COMPLETE_JOBS = sa.text("""
    UPDATE cdn_image_jobs
    SET status = 'completed', stage = 'publish', completed_at = now(), download_ms = 300, transcode_ms = 80,
        upload_ms = 40, bytes_in = 110000, bytes_out = 40000
""")

# All of them are one object per size, which is in the store.
_RENDITIONS = sa.text("""
    INSERT INTO cdn_image_renditions (
        asset_id, size_name, format, width, height, file_size, content_hash, path, original_sha256, recipe,
        recipe_version, encoder, state, published_at)
    SELECT id, side, 'webp', side::int, side::int, :size, CAST(:hash AS text),
           '/th/ig/any/any/' || side || '/' || left(CAST(:hash AS text), 16) || '.webp', original_sha256, :recipe,
           :version, 'pillow', 'current', now()
    FROM cdn_image_assets, unnest(ARRAY['256', '512']) AS side
""")
