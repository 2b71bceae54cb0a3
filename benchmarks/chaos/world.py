"""The world of one disaster: its source rows, its catalog, its stores, and the runs that mirror it."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
import sqlalchemy as sa

from benchmarks.chaos.faults import behaves
from benchmarks.chaos.place import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Place
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import SHARDS
from cdn_pipeline.demo import app_database, fast_clock
from cdn_pipeline.demo.processes import python, running
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.sources.app_database import shard_bounds
from cdn_pipeline.store.objects import ObjectStore

# An eighth of the shards: reporting all 64 costs a run 4 s.
FIRST_SHARD, LAST_SHARD = SHARDS[0], SHARDS[len(SHARDS) // 8 - 1]
RANGE = {"dagster/asset_partition_range_start": FIRST_SHARD, "dagster/asset_partition_range_end": LAST_SHARD}

_BASE_URL = "http://127.0.0.1:8000"
# The longest outage that a run sits out is two minutes; a run that lasts longer than this hangs.
_RUN_SECONDS = 300.0
_START_SECONDS = 60.0
_ORPHAN_SECONDS = 15.0
_POLL_SECONDS = 0.05


class RunHangsError(Exception):
    """A run did not end by itself, or never began to work."""


@dataclass
class World:
    """One catalog, one source, two stores.

    `offset` is how far the catalog's clock has been moved, `runs` how many have begun, `harm` what was found wrong
    while disaster struck.
    """

    place: Place
    name: str
    source: sa.Engine
    catalog: sa.Engine
    objects_url: str
    originals_url: str
    offset: timedelta = timedelta()
    runs: int = 0
    harm: list[str] = field(default_factory=list)

    @property
    def signer(self) -> Signer:
        """Signs source URLs that lead through the origin's front."""
        return Signer(self.place.origin_front.url, self.place.origin.secret)

    @property
    def folder(self) -> Path:
        """What runs may write to; it names them as well: each has it in its environment."""
        return self.place.folder / self.name

    @property
    def log(self) -> Path:
        """What the latest run said."""
        return self.folder / f"run{self.runs}.log"

    @property
    def environment(self) -> Mapping[str, str]:
        """The contract's variables for a run."""
        return {
            "CDN_PIPELINE_VAR_DIR": str(self.folder),
            "DAGSTER_HOME": str(self.place.home),
            "SOURCE_DATABASE_URL": self.source.url.render_as_string(hide_password=False),
            "CATALOG_DATABASE_URL": self.catalog.url.render_as_string(hide_password=False),
            "OBJECT_STORE_URL": self.objects_url,
            "ORIGINALS_STORE_URL": self.originals_url,
            "CDN_BASE_URL": _BASE_URL,
            "DOWNLOAD_ALLOWED_NETWORKS": "127.0.0.0/8",
            **(self._credentials if self.objects_url.startswith("s3://") else {}),
        }

    @property
    def _credentials(self) -> Mapping[str, str]:
        return {
            "R2_ENDPOINT_URL": self.place.store_front.url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "R2_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        }

    def store(self, url: str) -> ObjectStore:
        """A store of this world, past the front."""
        return ObjectStore.from_url(
            url,
            endpoint_url=self.place.store_front.upstream,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
        )

    # -- runs --

    @contextmanager
    def begun_run(self) -> Iterator["subprocess.Popen[bytes]"]:
        """A run as CI starts it; asked to end when the block does."""
        self.runs += 1
        job = ["job", "execute", "-m", "cdn_pipeline.definitions", "-j", "publish_images", "--tags", json.dumps(RANGE)]
        with running(python("-m", "dagster", *job), self.log, environment=self.environment) as process:
            yield process

    def run(self) -> int:
        """A run from start to end; its exit status.

        Raises:
            RunHangsError: it did not end.
        """
        with self.begun_run() as process:
            return self.wait(process)

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """The exit status of a run that ends by itself.

        Raises:
            RunHangsError: it does not.
        """
        try:
            return process.wait(_RUN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RunHangsError(f"a run has not ended after {_RUN_SECONDS:.0f} s, see {self.log}") from error

    def wait_for_work(self, process: "subprocess.Popen[bytes]", published: int = 0) -> None:
        """Returns when the run has images in hand and so many are visible, or when it has ended.

        Raises:
            RunHangsError: neither happens.
        """

        def works() -> bool:
            in_hand = self._number("SELECT count(*) FROM cdn_image_jobs WHERE status = 'processing'")
            return bool(in_hand) and self.visible() >= published

        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None and not works():
            if time.monotonic() > deadline:
                raise RunHangsError(f"a run has not begun to work after {_START_SECONDS:.0f} s, see {self.log}")
            time.sleep(_POLL_SECONDS)

    def orphans(self) -> list[psutil.Process]:
        """Processes of runs that are still there; call it when no run is meant to be."""
        left = [process for process in psutil.process_iter() if self._is_of_a_run(process)]
        return psutil.wait_procs(left, timeout=_ORPHAN_SECONDS)[1]

    def _is_of_a_run(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get("CDN_PIPELINE_VAR_DIR") == str(self.folder) and process.pid != os.getpid()
        return False

    # -- time --

    def move_clock(self, by: timedelta) -> None:
        """Moves the catalog's clock on (or back)."""
        self.offset += by
        fast_clock.set_offset(self.catalog, self.offset)

    def heal(self) -> int:
        """Ends all faults, lets the longest wait for a retry or a host pass, and runs once more."""
        self.place.origin_front.fault = self.place.store_front.fault = behaves
        with self.catalog.connect() as connection:
            ready_at = connection.scalar(_READY_AT)
            wait = ready_at - catalog_time(connection) if ready_at else timedelta()
        self.move_clock(max(wait, timedelta()) + timedelta(seconds=1))
        return self.run()

    # -- what is there --

    def visible(self) -> int:
        """Images of which every size has a URL."""
        return self._number("SELECT count(*) FROM cdn_image_urls WHERE num_nulls(cdn_url_256, cdn_url_512) = 0")

    def kinds(self) -> Counter[str]:
        """What images fail with at the moment."""
        failing = sa.text("SELECT failure_kind FROM cdn_image_assets WHERE failure_kind IS NOT NULL")
        with self.catalog.connect() as connection:
            return Counter(connection.scalars(failing))

    def _number(self, query: str) -> int:
        with self.catalog.connect() as connection:
            return int(connection.scalar(sa.text(query)) or 0)


_READY_AT = sa.text("""
    SELECT greatest((SELECT max(next_attempt_at) FROM cdn_image_jobs WHERE status IN ('queued', 'processing')),
                    (SELECT max(retry_at) FROM cdn_hosts))
""")


@contextmanager
def opened_world(
    place: Place, name: str, *, profiles: int = 3, posts: int = 8, stores: Path | None = None
) -> Iterator[World]:
    """A world with about so many profiles, in the first shards, and nothing mirrored yet.

    Its stores are two new buckets, or folders below `stores`.
    """
    source, catalog = place.new_database(f"{name}_source"), place.new_database(f"{name}_catalog")
    try:
        urls = _folders(stores) if stores else _buckets(place, name)
        world = World(place, name, source, catalog, *urls)
        world.folder.mkdir()
        fast_clock.install(catalog)
        migrate(catalog, _BASE_URL)
        _fill(world, profiles, posts)
        yield world
    finally:
        source.dispose()
        catalog.dispose()


def _folders(stores: Path) -> tuple[str, str]:
    return (stores / "objects").as_uri(), (stores / "originals").as_uri()


def _buckets(place: Place, name: str) -> tuple[str, str]:
    buckets = f"{name}-objects", f"{name}-originals"
    for bucket in buckets:
        place.new_bucket(bucket)
    return f"s3://{buckets[0]}", f"s3://{buckets[1]}"


def _fill(world: World, profiles: int, posts: int) -> None:
    """Draws profiles for all shards and keeps those of the first ones."""
    share = len(SHARDS) // (SHARDS.index(LAST_SHARD) + 1)
    app_database.create_tables(world.source)
    app_database.populate(
        world.source, world.signer, profiles=profiles * share, posts_per_profile=posts, nasty_rows=False
    )
    _, last = shard_bounds(FIRST_SHARD, LAST_SHARD)
    with world.source.begin() as connection:
        for delete in ("DELETE FROM posts WHERE profile_id > :last", "DELETE FROM profiles WHERE id > :last"):
            connection.execute(sa.text(delete), {"last": last})


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """`kill -9` of a run and of its children at once."""
    with suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
    process.wait()
