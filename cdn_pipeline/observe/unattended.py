"""Whether a run comes by itself for what is due, and what a person does where none does."""

import json
import shlex
from collections.abc import Collection as Some

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import SHARDS, Collection
from cdn_pipeline.observe.thresholds import SENSOR_SILENT
from cdn_pipeline.observe.times import distance
from cdn_pipeline.observe.workers import workers
from cdn_pipeline.queue.due import IS_DUE, JOIN_SHUT_HOSTS
from cdn_pipeline.queue.heartbeats import beats
from cdn_pipeline.queue.refreshes import shards_to_refresh

DUE_SENSOR = "due_images_sensor"  # the only one that asks for runs


def run_command(shards: Some[str] = SHARDS) -> str:
    """The shell command of one run of `publish_images` over these shards and those between them."""
    first, last = min(shards), max(shards)
    if first == last:
        tags = {"dagster/partition": first}
    else:
        tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return f"dagster job execute -m cdn_pipeline.definitions -j publish_images --tags {shlex.quote(json.dumps(tags))}"


def sensor_silence(connection: sa.Connection) -> str | None:
    """That no run comes by itself, since when, and what to switch on; None: the sensor asks for runs."""
    now, seen = catalog_time(connection), beats(connection).get(DUE_SENSOR)
    if seen is not None and now - seen <= SENSOR_SILENT:
        return None
    last_seen = f"last seen {distance(seen, now)}" if seen else "never seen"
    return (
        f"No run comes by itself: {DUE_SENSOR} was {last_seen}. "
        "Start Dagster's daemon and switch the sensor on under Automation"
    )


def how_to_start(connection: sa.Connection, shards: Some[str]) -> str | None:
    """What to do so that a run comes to these shards, its command between backticks.

    None: the sensor asks for one, or there is no shard.
    """
    silence = sensor_silence(connection) if shards else None
    return silence and f"{silence}, or run `{run_command(shards)}`"


def left_alone(connection: sa.Connection, collection: Collection) -> str | None:
    """What to do where jobs are due, or users wait for a refresh, while no run lives and the sensor is silent; or None.

    It tells of this long before `NO_WORKERS_ERROR` makes it an illness.
    """
    if workers(connection, collection).runs:
        return None
    due = connection.scalars(_DUE_SHARDS, {"collection": collection.name})
    return how_to_start(connection, {*due, *shards_to_refresh(connection, collection)})


_DUE_SHARDS = sa.text(f"""
    SELECT DISTINCT shard FROM cdn_image_jobs {JOIN_SHUT_HOSTS}
    WHERE collection = :collection AND {IS_DUE} AND shut_host IS NULL
""")
