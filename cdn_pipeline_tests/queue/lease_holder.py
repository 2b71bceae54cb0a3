"""A process that holds a run and claims everything in shard 00, until it is killed: `lease_holder.py URL RUN_ID`."""

import sys
import time

import sqlalchemy as sa

from cdn_pipeline.queue.leases import hold_run
from cdn_pipeline_tests.queue.catalogs import take


def main(url: str, run_id: str) -> None:
    engine = sa.create_engine(url)
    with hold_run(engine, run_id) as run:
        with engine.begin() as connection:
            claimed = take(connection, run, shards=["00"])
        print(len(claimed), flush=True)  # noqa: T201  (the parent waits for this line)
        time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
