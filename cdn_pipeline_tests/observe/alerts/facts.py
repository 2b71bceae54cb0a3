"""Vitals of a system that is well, for tests to spoil."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cdn_pipeline.observe.alerts.facts import Facts
from cdn_pipeline.observe.feasibility import Feasibility
from cdn_pipeline.observe.overview import FreshUrls, Images, Outcomes, Overview, QueueLine, Watermarks
from cdn_pipeline.observe.standing import OldestDue, Scans, Watch
from cdn_pipeline.observe.stats import HourStats
from cdn_pipeline.observe.vitals import Process, RoundTrip, Vitals
from cdn_pipeline.observe.workers import Workers

NOW = datetime(2030, 1, 1, 12, 30, tzinfo=UTC)
WELL = RoundTrip(1.0)
AWAY = RoundTrip(None, "connection refused")


def overview(**changes: Any) -> Overview:
    """Nothing to do, and nothing went wrong."""
    well = Overview(
        now=NOW,
        images=Images(0, {}, 0),
        watch=Watch(0, 0, 0, ()),
        queue=(),
        oldest_due=OldestDue(0, None, None),
        shut_hosts=(),
        feasibility=Feasibility(None, 0, 0, 0, None, "no image waits for its download"),
        failures=(),
        last_hour=Outcomes(100, 0),
        last_day=Outcomes(1000, 0),
        hours=(),
        runs=(),
        watermarks=Watermarks(0, None, None),
        scans=Scans(False, (), None),
        fresh_urls=FreshUrls(0, 0, 0, None),
    )
    return replace(well, **changes)


def queue_of(depth: int, priority: int = 4) -> tuple[QueueLine, ...]:
    return (QueueLine(priority, depth, 0, 0, 0, None, None),)


def hour(start: datetime = NOW - timedelta(minutes=90), **changes: Any) -> HourStats:
    """An hour in which a hundred jobs were completed."""
    numbers = {"jobs_processed": 100, "jobs_failed": 0, "avg_processing_time_ms": 100, "error_categories": {}}
    others = dict.fromkeys(
        (
            "avg_download_time_ms",
            "avg_upload_time_ms",
            "total_bytes_processed",
            "avg_file_size_bytes",
            "peak_queue_depth",
            "worker_utilization_percent",
        ),
        0,
    )
    return HourStats(start.date(), start.hour, **{**others, **numbers, **changes})


def vitals(**changes: Any) -> Vitals:
    """Everything answers; nobody relies on the daemon; Cloudflare is not configured."""
    well = Vitals(
        at=NOW,
        catalog=WELL,
        objects=WELL,
        originals=WELL,
        heartbeat=None,
        overview=overview(),
        figures=None,
        alerts_firing=None,
        workers=Workers(0, 0, 0, None),
        delivery=None,
        traffic=None,
        storage=None,
        disk=None,
        process=Process(NOW, timedelta(0), 1, 0.0, 1, 0.0),
    )
    return replace(well, **changes)


def without_catalog(**changes: Any) -> Vitals:
    """The catalog is away, and so is all that it knows."""
    return vitals(catalog=AWAY, overview=None, workers=None, **changes)


def facts(**changes: Any) -> Facts:
    """As the vitals above, and what is looked up besides."""
    return replace(Facts(vitals(), new_images=0), **changes)
