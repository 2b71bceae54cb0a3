"""Our job against one Celery task per image (`celery_tasks.py`): the same URLs, sizes and encoder settings.

Redis is the broker, workers are forked, one for each core, and the peer's Postgres is ours. Jobs are on the broker
before the worker starts; the clock runs from the first task's start to the last committed row.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.jobs import cpu_seconds
from benchmarks.peers.installation import HERE, install_python_peer, package_versions, require
from benchmarks.peers.measured import Measured, cpu, cpu_of_children, origin_cpu, our_run, play, speed, start_up
from benchmarks.report import Section
from benchmarks.throughput import CORES, World
from cdn_pipeline.demo.processes import free_port, running, tail

GOAL = 1.3
_DATABASE = "celery_peer"
_TASKS = HERE / "celery_tasks.py"
_WORKER = (
    f"--workdir={HERE}",
    "--app=celery_tasks",
    "worker",
    "--loglevel=warning",
    "--queues=cdn_processing",
    f"--concurrency={CORES}",
    "--max-tasks-per-child=100",
)
_TABLE = (
    "DROP TABLE IF EXISTS cdn_image_jobs",
    """
    CREATE TABLE cdn_image_jobs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        source_url text NOT NULL,
        status varchar(20) NOT NULL DEFAULT 'queued',
        started_at timestamptz,
        completed_at timestamptz,
        bytes_in bigint,
        path_256 text,
        path_512 text
    )""",
    "CREATE INDEX ix_cdn_image_jobs_status ON cdn_image_jobs (status)",
)
_REDIS_STARTS_SECONDS = 10.0  # 0.1 as a rule
_LOOK_EVERY_SECONDS = 0.5
_SECONDS_PER_IMAGE = 2.0  # twenty times what one takes: then something is wrong


@dataclass(frozen=True, slots=True)
class CeleryPeer:
    """Celery where it is installed, and its work."""

    programs: Path
    place: World
    urls: Sequence[str]

    def run(self) -> Measured:
        """Mirrors every URL from an empty table and empty folders."""
        media = self.place.var / "celery" / "media"
        shutil.rmtree(media, ignore_errors=True)
        self._fill_table()
        before = self._cpu()
        with self._broker() as broker:
            environment = {
                "CELERY_BROKER_URL": broker,
                "CATALOG_DATABASE_URL": self.place.server.url(_DATABASE),
                "MEDIA_FOLDER": str(media),
            }
            python = str(self.programs / "python")
            subprocess.run([python, str(_TASKS)], env={**os.environ, **environment}, check=True)
            started = time.time()
            with running([python, "-m", "celery", *_WORKER], self._log, environment=environment) as worker:
                self._wait(worker)
        spent = [after - earlier for after, earlier in zip(self._cpu(), before, strict=True)]
        first, last = self._clock()
        return Measured(len(self.urls), last - first, last - started, sum(spent[:2]), spent[2])

    @property
    def _log(self) -> Path:
        return self.place.var / "celery" / "worker.log"

    def _fill_table(self) -> None:
        self.place.server.ensure_database(_DATABASE)
        with self._connection() as connection:
            for statement in _TABLE:
                connection.execute(sa.text(statement))
            rows = [{"url": url} for url in self.urls]
            connection.execute(sa.text("INSERT INTO cdn_image_jobs (source_url) VALUES (:url)"), rows)

    @contextmanager
    def _broker(self) -> Iterator[str]:
        """A Redis of its own, which keeps nothing on disk; gives its URL."""
        port = free_port(0)
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(self._log.parent)]
        program = require("redis-server", debian_package="redis-server")
        with running([program, *options], self._log.with_name("redis.log")):
            _wait_until_it_listens(port)
            yield f"redis://127.0.0.1:{port}/0"

    def _wait(self, worker: subprocess.Popen[bytes]) -> None:
        """Until every row is completed."""
        deadline = time.monotonic() + _SECONDS_PER_IMAGE * len(self.urls) + 30
        while self._completed() < len(self.urls):
            if worker.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Celery completed {self._completed()} of {len(self.urls)} images:\n{tail(self._log)}")
            time.sleep(_LOOK_EVERY_SECONDS)

    def _completed(self) -> int:
        with self._connection() as connection:
            count = sa.text("SELECT count(*) FROM cdn_image_jobs WHERE status = 'completed'")
            return int(connection.execute(count).scalar_one())

    def _clock(self) -> tuple[float, float]:
        """The first task's start and the last one's end, as seconds since 1970."""
        with self._connection() as connection:
            first, last = connection.execute(
                sa.text("""
                    SELECT extract(epoch FROM min(started_at))::float, extract(epoch FROM max(completed_at))::float
                    FROM cdn_image_jobs""")
            ).one()
        return first, last

    def _cpu(self) -> tuple[float, float, float]:
        """CPU seconds of children that have ended (worker and broker are ours), of Postgres and of the origin."""
        return cpu_of_children(), cpu_seconds(self.place.postgres()), cpu_seconds(self.place.origin)

    @contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        engine = sa.create_engine(self.place.server.url(_DATABASE), poolclass=sa.NullPool)
        with engine.begin() as connection:
            yield connection


def _wait_until_it_listens(port: int) -> None:
    """Redis speaks no HTTP: a connection is enough."""
    deadline = time.monotonic() + _REDIS_STARTS_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def install(folder: Path) -> Path:
    """Where its programs are."""
    require("redis-server", debian_package="redis-server")
    return install_python_peer("celery", folder)


def compare(place: World, programs: Path, rounds: int, command: str) -> Section:
    """Measures both on the images of this world, which has run once."""
    urls = place.downloaded_urls()
    peer = CeleryPeer(programs, place, urls)
    peer.run()  # not counted, as ours was not
    played = play(lambda: our_run(place), peer.run, rounds)
    return Section(
        name="celery",
        title="Against one Celery task per image",
        command=command,
        figures=[
            *speed(played, "Celery", at_least=GOAL),
            *start_up(played, "Celery"),
            *cpu(played, "Celery"),
            *origin_cpu(played, "Celery"),
        ],
        notes=[
            f"{len(urls)} URLs; {CORES} forked processes, Redis, the same Postgres. Putting jobs on the broker and "
            "finding work are on neither clock.",
            "A task keeps the original and both renditions in folders and writes one row; it has no leases, verifies "
            "nothing, and decodes hostile files in the worker itself.",
        ],
        versions=package_versions(programs, ("celery", "kombu", "redis", "httpx")),
    )
