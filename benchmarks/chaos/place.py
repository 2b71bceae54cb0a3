"""Where disasters happen: one Postgres, one S3 server and one origin, with a front before each of the latter two."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGQUIT
from tempfile import TemporaryDirectory

import httpx
import psutil
import sqlalchemy as sa

from benchmarks.chaos.front import Front, running_front
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.demo.faults import NO_FAULTS, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin
from cdn_pipeline.demo.processes import free_port, python, running

ACCESS_KEY_ID, SECRET_ACCESS_KEY = "chaos-access-key-id", "chaos-secret-access-key"

_POSTGRES_ENDS_SECONDS = 30.0
# A run is started from a terminal here; Dagster's own default would leave those of the UI to a daemon.
_DAGSTER_YAML = """\
telemetry: {enabled: false}
run_coordinator: {module: dagster._core.run_coordinator, class: DefaultRunCoordinator}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """What all worlds share. Runs reach origin and store through their fronts alone."""

    folder: Path
    server: EmbeddedPostgres
    origin: Origin
    origin_front: Front
    store_front: Front

    @property
    def home(self) -> Path:
        """Dagster's."""
        return self.folder / "home"

    def new_bucket(self, name: str) -> None:
        """Makes an empty bucket, past the front."""
        httpx.put(f"{self.store_front.upstream}/{name}").raise_for_status()

    def new_database(self, name: str) -> sa.Engine:
        """An engine on a fresh database that survives restarts of the server."""
        self.server.ensure_database(name)
        return sa.create_engine(self.server.url(name), pool_pre_ping=True)

    def stop_postgres(self) -> None:
        """Ends the server at once, as a crash would: nothing is written, nobody is told."""
        file = next((self.folder / "postgres").rglob("postmaster.pid"))
        postmaster = psutil.Process(int(file.read_text().split()[0]))
        with suppress(psutil.NoSuchProcess):
            everybody = [postmaster, *postmaster.children()]
            postmaster.send_signal(SIGQUIT)
            psutil.wait_procs(everybody, timeout=_POSTGRES_ENDS_SECONDS)

    def start_postgres(self) -> None:
        """Starts it again; returns when it has recovered."""
        self.server.start()


@contextmanager
def opened_place() -> Iterator[Place]:
    """A place in a temporary folder; all of it is gone afterwards."""
    with TemporaryDirectory(prefix="cdn-pipeline-chaos-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)  # Postgres is served by another account where this one is root
        (folder / "home").mkdir()
        (folder / "home" / "dagster.yaml").write_text(_DAGSTER_YAML)
        port = free_port(0)
        moto = python("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
        store_url = f"http://127.0.0.1:{port}"
        with (
            EmbeddedPostgres(folder / "postgres") as server,
            running(moto, folder / "moto.log", ready_url=store_url),
            running_origin(folder / "pictures", misbehaviour=Misbehaviour(NO_FAULTS)) as origin,
            running_front(origin.base_url) as origin_front,
            running_front(store_url) as store_front,
        ):
            yield Place(folder, server, origin, origin_front, store_front)
