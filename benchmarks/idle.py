"""What `make dev` costs when there is nothing to do: sensor and schedules on, the demo's data mirrored.

    .venv/bin/python -m benchmarks.idle [--minutes 30]

Starts `cdn-pipeline dev` in a world of its own, switches everything on through Dagster's GraphQL, waits until the
sensor has had all images mirrored and nothing has run for two minutes, then watches: CPU of all processes by kind,
ticks, runs and rows in Dagster's tables. At the end it adds a profile and tells how long its first image took to be
downloaded.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa

from benchmarks.processes import Usage
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, DEMO_DATABASE
from cdn_pipeline.demo import app_database, stage
from cdn_pipeline.demo.processes import free_port, stop
from cdn_pipeline.demo.signing import Signer
from cdn_pipeline.settings import Settings, project_root

_QUIET = timedelta(minutes=2)

_LOCATION = "{repositoryName: $repository, repositoryLocationName: $location"
_SWITCHES = {
    "sensors": f"mutation($repository: String!, $location: String!, $name: String!) {{"
    f"startSensor(sensorSelector: {_LOCATION}, sensorName: $name}}) {{ __typename }} }}",
    "schedules": f"mutation($repository: String!, $location: String!, $name: String!) {{"
    f"startSchedule(scheduleSelector: {_LOCATION}, scheduleName: $name}}) {{ __typename }} }}",
}


@dataclass(frozen=True, slots=True)
class Dagster:
    """A running `dagster dev`: its GraphQL and its SQLite files."""

    url: str
    home: Path

    def ask(self, query: str, **variables: Any) -> Any:
        """What GraphQL answers."""
        answer = httpx.post(f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60)
        return answer.raise_for_status().json()["data"]

    def switch_everything_on(self) -> list[str]:
        """Starts every sensor and schedule; returns their names."""
        (repository,) = self.ask(
            "{ repositoriesOrError { ... on RepositoryConnection { nodes { "
            "name location { name } sensors { name } schedules { name } } } } }"
        )["repositoriesOrError"]["nodes"]
        place = {"repository": repository["name"], "location": repository["location"]["name"]}
        names = [(kind, each["name"]) for kind in _SWITCHES for each in repository[kind]]
        for kind, name in names:
            self.ask(_SWITCHES[kind], **place, name=name)
        return [name for _, name in names]

    def rows(self) -> Counter[str]:
        """Rows in Dagster's tables, and ticks by what came of them."""
        counts: Counter[str] = Counter()
        for file in self.home.glob("**/*.db"):
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
                for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    counts[table] += connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                    if table == "job_ticks":
                        query = "SELECT status, count(*) FROM job_ticks GROUP BY status"
                        counts.update({f"ticks {status}": n for status, n in connection.execute(query)})
        return counts

    def is_idle(self) -> bool:
        """Whether no run is queued or running and none has ended lately."""
        runs = self.ask("{ runsOrError(limit: 20) { ... on Runs { results { status endTime } } } }")["runsOrError"][
            "results"
        ]
        latest = max((run["endTime"] or time.time() for run in runs), default=0.0)
        return bool(runs) and time.time() - latest > _QUIET.total_seconds()


def cpu_while(root: psutil.Process, seconds: float) -> Counter[str]:
    """CPU seconds by kind that a process and all below it use in this time, those that end meanwhile included."""
    usage = Usage(root)
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        time.sleep(1)
        usage.look()
    return usage.cpu_seconds


def wait_until(condition: Callable[[], bool], what: str, limit: timedelta) -> None:
    """Waits, and says for what."""
    print(f"waiting until {what}", file=sys.stderr)
    ends_at = time.monotonic() + limit.total_seconds()
    while not _holds(condition):
        if time.monotonic() > ends_at:
            sys.exit(f"not within {limit}: {what}")
        time.sleep(1)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except httpx.HTTPError:
        return False


@contextmanager
def started(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Dagster]]:
    """Runs `cdn-pipeline dev` with all its state in this folder."""
    home, port = folder / "dagster", free_port(0)
    home.mkdir()
    (home / "dagster.yaml").write_bytes((project_root() / "dagster.yaml").read_bytes())
    variables = {**os.environ, "CDN_PIPELINE_VAR_DIR": str(folder / "var"), "DAGSTER_HOME": str(home)}
    with (folder / "dev.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cdn_pipeline.cli", "dev", "--port", str(port)],
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, Dagster(f"http://127.0.0.1:{port}", home)
    finally:
        stop(process)


def watch(process: psutil.Process, dagster: Dagster, minutes: float) -> None:
    """Prints what an idle system costs."""
    seconds, rows = minutes * 60, dagster.rows()
    spent = cpu_while(process, seconds)
    more = dagster.rows() - rows
    print(f"| idle for {minutes:.0f} minutes | |\n|---|---|")
    for kind, value in spent.most_common():
        print(f"| CPU, {kind} | {100 * value / seconds:.2f} % of a core |")
    print(f"| **CPU, all** | **{100 * sum(spent.values()) / seconds:.2f} % of a core** |")
    for table, count in more.most_common():
        print(f"| more rows: {table} | {count} |")


def time_to_first_download(folder: Path) -> float:
    """Seconds from the insert of a new profile to the start of its first download's job."""
    settings = Settings(_env_file=None, cdn_pipeline_var_dir=folder / "var")  # type: ignore[call-arg]
    secret, port = stage.origin_key(settings)
    with EmbeddedPostgres(folder / "var" / "postgres") as server:
        source = sa.create_engine(server.url(DEMO_DATABASE))
        catalog = sa.create_engine(server.url(CATALOG_DATABASE))
        inserted = datetime.now(UTC)
        owner = app_database.add_profile(source, Signer(f"http://127.0.0.1:{port}", secret), seed=1)
        query = sa.text(
            "SELECT min(j.first_started_at) FROM cdn_image_jobs j JOIN cdn_image_assets a ON a.id = j.asset_id "
            "WHERE a.owner_id = :owner"
        )
        found: list[datetime] = []

        def has_begun() -> bool:
            with catalog.connect() as connection:
                found[:] = filter(None, [connection.scalar(query, {"owner": str(owner)})])
            return bool(found)

        wait_until(has_begun, "the new profile's first image is downloaded", timedelta(minutes=3))
        source.dispose()
        catalog.dispose()
    return (found[0] - inserted).total_seconds()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=30)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-idle-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with started(folder) as (process, dagster):
            wait_until(lambda: bool(dagster.ask("{ version }")), "Dagster answers", timedelta(minutes=2))
            names = dagster.switch_everything_on()
            print(f"switched on: {', '.join(names)}", file=sys.stderr)
            wait_until(dagster.is_idle, "all is mirrored and quiet", timedelta(minutes=30))
            watch(psutil.Process(process.pid), dagster, minutes)
            seconds = time_to_first_download(folder)
            print(f"| from the insert of a profile to its first download | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
