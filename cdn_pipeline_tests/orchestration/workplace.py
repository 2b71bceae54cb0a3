"""Runs of the real job, in a process of their own or in this one, on a Dagster home of their own."""

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Any

import dagster as dg
from dagster import AssetCheckKey, AssetKey

from cdn_pipeline.definitions import defs
from cdn_pipeline.orchestration.assets.images import mirrored_images
from cdn_pipeline.orchestration.partitions import image_shards
from cdn_pipeline.orchestration.resources import MirrorResource

ROOT = Path(__file__).parents[2]
ALL_SHARDS = ("00", "3f")
ORIGINALS, RENDITIONS, PUBLISHED = map(AssetKey, ("original_images", "image_renditions", "published_images"))
ASSETS = (AssetKey("source_images"), ORIGINALS, RENDITIONS, PUBLISHED)


def shard_tags(first: str, last: str | None = None) -> dict[str, str]:
    """The tags that make a run one of a shard, or of a range of shards."""
    if last is None:
        return {"dagster/partition": first}
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def start_dagster(arguments: Sequence[str], folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Starts Dagster's command line; its output goes to the file `log`.

    SIGINT gets its default back: where it is ignored (pytest in the background), Dagster ignores SIGTERM as well.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dagster", *arguments],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def begin_run(instance: dg.DagsterInstance, job: str = "publish_images", **tags: str) -> dg.DagsterRun:
    """A run that has not ended; nothing is known of its start."""
    return instance.create_run_for_job(defs.resolve_job_def(job), tags=tags, status=dg.DagsterRunStatus.STARTED)


def begin_run_ago(
    instance: dg.DagsterInstance, ago: timedelta, job: str = "publish_images", **tags: str
) -> dg.DagsterRun:
    """A run that has not ended and was started so long ago."""
    run = begin_run(instance, job, **tags)
    report(instance, run, dg.DagsterEventType.PIPELINE_START, ago)
    return run


def report(instance: dg.DagsterInstance, run: dg.DagsterRun, event: dg.DagsterEventType, ago: timedelta) -> None:
    """Lets the run have started, failed or ended so long ago."""
    moment = (datetime.now(UTC) - ago).timestamp()
    happened = dg.DagsterEvent(event_type_value=event.value, job_name=run.job_name)
    instance.report_dagster_event(happened, run.run_id, timestamp=moment)


def wait_until(true: Callable[[], bool]) -> None:
    """Polls; pytest's own time limit ends a wait in vain."""
    while not true():
        sleep(0.1)


@dataclass(frozen=True)
class Workplace:
    """A Dagster home, in an environment that is that of this process and of its children."""

    folder: Path
    instance: dg.DagsterInstance

    @property
    def log(self) -> Path:
        """What the command line has said."""
        return self.folder / "dagster.log"

    def start(self, *shards: str) -> "subprocess.Popen[bytes]":
        """`dagster job execute`, as CI calls it."""
        tags = json.dumps(shard_tags(*shards))
        arguments = ["job", "execute", "-m", "cdn_pipeline.definitions", "-j", "publish_images", "--tags", tags]
        return start_dagster(arguments, self.folder, self.log)

    def execute(self, *shards: str) -> int:
        """The exit status of `dagster job execute`."""
        return self.start(*shards).wait()

    def run(self, *shards: str, config: Mapping[str, Any] | None = None) -> dg.ExecuteInProcessResult:
        """The job in this process, which spares 4 s."""
        return defs.resolve_job_def("publish_images").execute_in_process(
            instance=self.instance,
            tags=shard_tags(*shards),
            run_config=_configured(config),
            raise_on_error=False,
        )

    def materialize(
        self, assets: Sequence[str], *shards: str, config: Mapping[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Some of the assets, as "Materialize selected" does in the UI."""
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            tags=shard_tags(*shards),
            asset_selection=[AssetKey(name) for name in assets],
            run_config=_configured(config),
            raise_on_error=False,
        )

    def check(self, *names: str) -> dg.ExecuteInProcessResult:
        """Checks of the published images alone, as "Execute" does in the UI: without a shard."""
        selection = dg.AssetSelection.checks(*(AssetCheckKey(PUBLISHED, name) for name in names))
        return dg.materialize(
            [mirrored_images],
            selection=selection,
            instance=self.instance,
            resources={"mirror": MirrorResource()},
            raise_on_error=False,
        )

    def latest_run(self) -> dg.DagsterRun:
        """The run that was started last."""
        return self.instance.get_runs(limit=1)[0]

    def statuses(self, asset: AssetKey = PUBLISHED) -> Mapping[str, str]:
        """MATERIALIZED, FAILED or IN_PROGRESS by shard; shards without a status are left out."""
        found = self.instance.get_status_by_partition(asset, image_shards.get_partition_keys(), image_shards)
        return {shard: status.name for shard, status in (found or {}).items() if status is not None}

    def materializations(self, run_id: str) -> Counter[tuple[str, str | None]]:
        """How many events each asset and shard got in a run."""
        return Counter((made.asset_key.to_user_string(), made.partition) for made in self._made(run_id))

    def metadata(self, run_id: str, asset: AssetKey, shard: str) -> Mapping[str, Any]:
        """What a run said of a shard, as plain values."""
        [made] = [made for made in self._made(run_id) if (made.asset_key, made.partition) == (asset, shard)]
        return {name: value.value for name, value in made.metadata.items()}

    def sum_of(self, number: str, run_id: str, asset: AssetKey = PUBLISHED) -> int:
        """A number of the metadata, added up over the run's shards."""
        values: list[Any] = [made.metadata.get(number) for made in self._made(run_id) if made.asset_key == asset]
        return sum(value.value for value in values if value is not None)

    def _made(self, run_id: str) -> list[dg.AssetMaterialization]:
        entries = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return [entry.get_dagster_event().step_materialization_data.materialization for entry in entries]

    def check_statuses(self, check: str) -> Mapping[str | None, str]:
        """The status of a check's last execution, by shard (None: the whole run)."""
        key = AssetCheckKey(PUBLISHED, check)
        history = self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1000)
        return {record.partition: record.status.name for record in reversed(history)}


def verdicts(run: dg.ExecuteInProcessResult) -> Mapping[str, tuple[bool, str]]:
    """Whether each check of the whole run passed, and its severity."""
    found = [made for made in run.get_asset_check_evaluations() if made.partition is None]
    return {made.check_name: (made.passed, made.severity.name) for made in found}


def _configured(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {"ops": {"mirrored_images": {"config": dict(config)}}} if config else None


@contextmanager
def opened_workplace(folder: Path, dagster_yaml: Path) -> Iterator[Workplace]:
    """A fresh Dagster home with a copy of this configuration; DAGSTER_HOME must say `folder / "home"`."""
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes(dagster_yaml.read_bytes())
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield Workplace(folder, instance)
