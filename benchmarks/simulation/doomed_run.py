"""A run that is killed with jobs in hand, as the kernel does when memory is short: `kill -9` of a process of its own.

The process is `python -m benchmarks.simulation.doomed_run RUN_ID`: it takes all due jobs, prints how many, never ends.
"""

import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import dagster as dg

from cdn_pipeline.catalog.sessions import open_catalog, open_source_database
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.processes import python
from cdn_pipeline.engine.discover import discover
from cdn_pipeline.queue.due import Selection, claim
from cdn_pipeline.queue.leases import hold_run, renew_leases
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import load_settings

_CHECKOUT = Path(__file__).parents[2]  # `benchmarks` is not installed
_MANY = 10_000
_IN_HAND_SECONDS = 1.0


def start_and_kill(job: dg.JobDefinition, instance: dg.DagsterInstance) -> int:
    """Starts a run of all shards of the job and kills it; returns how many jobs it had in hand.

    Dagster believes that it still runs.
    """
    run = instance.create_run_for_job(
        job,
        run_id=str(uuid4()),
        tags={"dagster/asset_partition_range_start": SHARDS[0], "dagster/asset_partition_range_end": SHARDS[-1]},
        status=dg.DagsterRunStatus.STARTED,
    )
    command = python("-m", "benchmarks.simulation.doomed_run", run.run_id)
    with subprocess.Popen(command, cwd=_CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        in_hand = process.stdout.readline()
        process.kill()
    return int(in_hand)


def main(run_id: str) -> None:
    """Discovers, claims, has the jobs in hand for a second, renews its leases, says how many, and sleeps."""
    settings = load_settings()
    selection = Selection(INSTAGRAM, frozenset(Stage))
    with (
        open_catalog(settings) as catalog,
        open_source_database(settings) as source,
        hold_run(catalog, run_id) as run,
    ):
        for _ in discover(source, catalog, INSTAGRAM, SHARDS, changed_only=True):
            pass
        with catalog.begin() as connection:
            claimed = claim(connection, run, selection, SHARDS, batch=_MANY, total=_MANY)
        time.sleep(_IN_HAND_SECONDS)
        with catalog.begin() as connection:
            renew_leases(connection, run)
        print(len(claimed), flush=True)
        time.sleep(3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
