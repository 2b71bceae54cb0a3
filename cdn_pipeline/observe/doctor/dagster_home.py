"""Dagster, as far as it can be seen without it: its home, and what its daemon has done lately."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, warning
from cdn_pipeline.observe.thresholds import HEARTBEAT_STALE
from cdn_pipeline.observe.times import distance
from cdn_pipeline.queue.heartbeats import beats
from cdn_pipeline.settings import project_root

_SENSORS = ("due_images_sensor", "alerts_sensor")
_SCHEDULES = {
    "nightly_freshness_schedule": timedelta(hours=26),
    "hourly_stats_schedule": timedelta(hours=2),
    "probe_delivery_schedule": timedelta(hours=2),
}
"""By when each has to have done its work again."""

_SWITCH_ON = "Start Dagster's daemon (`make dev`, or `dagster-daemon run`), and under Automation switch on"

_FIRST_TICKS = (
    "If they are on: one that was switched on just now is seen after its next tick (02:00 UTC, five past, twenty to), "
    "any other's runs fail."
)

_LIMITS = "key: lane"  # of tag_concurrency_limits; only Dagster reads the file as what it is


def look_at_home(_: Deployment) -> Finding:
    """Whether there is a home, that may be written to, with our instance's settings."""
    named = os.environ.get("DAGSTER_HOME")
    if not named:
        words = "DAGSTER_HOME is not set here: `dagster` alone would forget its runs"
        return warning(words, "Make sets it by itself; elsewhere:", f"export DAGSTER_HOME={project_root()}")
    home = Path(named)
    another = f"Make the folder, or set DAGSTER_HOME to {project_root()}; its path must be absolute."
    if not (home.is_absolute() and home.is_dir()):
        return failed(f"DAGSTER_HOME is {named}, which is no folder", another)
    if not os.access(home, os.W_OK):
        return failed(f"DAGSTER_HOME is {named}, which cannot be written to", f"Let this user write there. {another}")
    file = home / "dagster.yaml"
    if not file.is_file() or _LIMITS not in file.read_text():
        words = f"{file} is not there, or sets no limits for runs of a lane: a backfill would hold up users' requests"
        return warning(words, "Copy it:", f"cp {project_root() / 'dagster.yaml'} {file}")
    return ok(f"{home}, with dagster.yaml and its limits for runs")


def look_at_daemon(deployment: Deployment) -> Finding:
    """Whether both sensors have ticked lately, which tells of the daemon as well."""
    with deployment.catalog.connect() as connection:
        now, heard = catalog_time(connection), beats(connection)
    silent = _overdue(dict.fromkeys(_SENSORS, HEARTBEAT_STALE), heard, now)
    if silent:
        return warning(_told(silent, heard, now), f"{_SWITCH_ON} {' and '.join(silent)}: until then nothing starts.")
    return ok("the daemon is alive, and both sensors are on")


def look_at_schedules(deployment: Deployment) -> Finding:
    """Whether the schedules that leave a trace in the catalog have done so when they should have."""
    with deployment.catalog.connect() as connection:
        now = catalog_time(connection)
        done = {row.name: row.at for row in connection.execute(_TRACES)}
        first_run = connection.scalar(_FIRST_RUN)
    overdue = _overdue(_SCHEDULES, _since(first_run or now, done), now)
    if overdue:
        return warning(_told(overdue, done, now), f"{_SWITCH_ON} all schedules. {_FIRST_TICKS}")
    young = [name for name in _SCHEDULES if done.get(name) is None]
    if young:
        return ok(f"nothing is overdue; not yet due for the first time: {', '.join(young)}")
    return ok("the night, the statistics and the probes were done in time")


def _since(begun: datetime, done: Mapping[str, datetime | None]) -> Mapping[str, datetime]:
    """From when on each schedule's time counts: what was never done is due so long after the deployment's beginning."""
    return {name: done.get(name) or begun for name in _SCHEDULES}


def _overdue(every: Mapping[str, timedelta], last: Mapping[str, datetime | None], now: datetime) -> Sequence[str]:
    moments = {name: last.get(name) for name in every}
    return [name for name, moment in moments.items() if moment is None or now - moment > every[name]]


def _told(names: Sequence[str], last: Mapping[str, datetime | None], now: datetime) -> str:
    moments = {name: last.get(name) for name in names}
    return "last seen: " + ", ".join(
        f"{name} {distance(moment, now) if moment else 'never'}" for name, moment in moments.items()
    )


_FIRST_RUN = sa.text("SELECT min(started_at) FROM cdn_runs")

# What the runs of a schedule leave; a run by hand leaves the same.
_TRACES = sa.text("""
    SELECT 'nightly_freshness_schedule' AS name, max(fully_scanned_at) AS at FROM cdn_source_watermarks
    UNION ALL SELECT 'hourly_stats_schedule', max(created_at) FROM cdn_processing_stats
    UNION ALL SELECT 'probe_delivery_schedule', max(probed_at) FROM cdn_delivery_probes
""")
