"""The vitals as Prometheus's metrics. What is not known has no sample: a gap in a graph, never a zero."""

from collections.abc import Iterable, Iterator

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.alerts.machine import Severity
from cdn_pipeline.observe.alerts.rules import RULES
from cdn_pipeline.observe.figures import Figures
from cdn_pipeline.observe.health import Health
from cdn_pipeline.observe.overview import Outcomes, Overview
from cdn_pipeline.observe.parts import parts, whole
from cdn_pipeline.observe.probes import Delivery, Percentiles
from cdn_pipeline.observe.stats import HourStats
from cdn_pipeline.observe.storage import Storage
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.vitals import MEASUREMENTS, Disk, Vitals
from cdn_pipeline.observe.workers import Workers

_PREFIX = "cdn_pipeline_"

_LEVEL = {Health.HEALTHY: 2, Health.DEGRADED: 1, Health.UNHEALTHY: 0}

Sample = tuple[tuple[str, ...], float | None]


def metrics_of(vitals: Vitals) -> Iterator[Metric]:
    """All that is known; the metrics of what is away are missing."""
    yield from _health(vitals)
    broken = [((name,), float(name in vitals.unmeasurable)) for name in MEASUREMENTS]
    yield _gauges("measurement_broken", "Whether it fails by an error of ours.", ("measurement",), broken)
    yield from _round_trips(vitals)
    yield from _overview(vitals.overview) if vitals.overview else ()
    yield from _workers(vitals.workers) if vitals.workers else ()
    yield from _figures(vitals.figures) if vitals.figures else ()
    yield from _storage(vitals.storage) if vitals.storage else ()
    yield from _delivery(vitals.delivery) if vitals.delivery else ()
    yield from _traffic(vitals.traffic) if vitals.traffic else ()
    yield from _disk(vitals.disk) if vitals.disk else ()
    yield _gauge(
        "daemon_heartbeat_timestamp_seconds",
        "When a sensor of Dagster last ticked, as a Unix time.",
        vitals.heartbeat.timestamp() if vitals.heartbeat else None,
    )
    yield _gauge("measured_timestamp_seconds", "When all this was measured, as a Unix time.", vitals.at.timestamp())


def _gauge(name: str, words: str, value: float | None) -> Metric:
    return _gauges(name, words, (), [((), value)])


def _gauges(name: str, words: str, labels: tuple[str, ...], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, words, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family


def _health(vitals: Vitals) -> Iterator[Metric]:
    found = parts(vitals)
    words = "2 healthy, 1 degraded, 0 unhealthy"
    yield _gauge("health", f"The whole: {words}.", _LEVEL[whole(found)])
    samples = [((part.name.value,), float(_LEVEL[part.health])) for part in found]
    yield _gauges("part_health", f"Each part: {words}.", ("part",), samples)
    if vitals.alerts_firing is not None:
        firing = vitals.alerts_firing
        kinds = [(rule, severity.value) for rule in RULES for severity in Severity]
        counts = [(kind, float(firing.get(kind, 0))) for kind in kinds]
        yield _gauges("alerts_firing", "Alerts of ours that fire.", ("rule", "severity"), counts)


def _round_trips(vitals: Vitals) -> Iterator[Metric]:
    asked = {"catalog": vitals.catalog, "objects": vitals.objects, "originals": vitals.originals}
    answered = [((name,), float(trip.answered)) for name, trip in asked.items()]
    yield _gauges("up", "Whether catalog and stores answer.", ("part",), answered)
    seconds = [((name,), _seconds(trip.milliseconds)) for name, trip in asked.items()]
    yield _gauges("round_trip_seconds", "How long a cheap question took.", ("part",), seconds)


def _overview(overview: Overview) -> Iterator[Metric]:
    by_status = [((status.value,), float(count)) for status, count in overview.images.by_status.items()]
    yield _gauges("images", "Images by status.", ("status",), by_status)
    yield _gauge("images_published", "Images that the public sees.", overview.images.published)
    yield _gauge("images_lost", "Images lost on our watch.", overview.watch.lost)
    yield _gauge("images_lost_lately", "Of these, within the last 7 days.", overview.watch.lost_lately)
    yield _gauge("images_arrived_dead", "Images that had expired before we saw them.", overview.watch.arrived_dead)
    yield _gauge("images_waiting_for_url", "Images that wait for a fresh URL.", overview.fresh_urls.waiting)
    yield _gauge("refreshes_waiting", "Refreshes that users asked for and that are open.", overview.refreshes.waiting)
    words = "Refreshes that no run came to, closed within the last hour."
    yield _gauge("refreshes_expired_lately", words, overview.refreshes.expired)
    failures = [((line.kind,), float(line.images)) for line in overview.failures]
    yield _gauges("images_failed", "Images that are not completed, by kind of failure.", ("kind",), failures)
    yield from _queue(overview)
    yield from _tried("1h", "the last hour", overview.last_hour)
    yield from _tried("24h", "the last 24 hours", overview.last_day)
    oldest_scan = overview.scans.oldest
    yield _gauge(
        "oldest_full_scan_timestamp_seconds",
        "When the shard was read in full that was so longest ago, as a Unix time.",
        oldest_scan.timestamp() if oldest_scan else None,
    )
    yield from _last_hour(overview.hours[0]) if overview.hours else ()


def _tried(suffix: str, when: str, outcomes: Outcomes) -> Iterator[Metric]:
    counts = [(("completed",), float(outcomes.completed)), (("failed",), float(outcomes.failed))]
    yield _gauges(f"images_tried_{suffix}", f"Images by their last outcome in {when}.", ("status",), counts)
    yield _gauge(f"success_ratio_{suffix}", f"Completed of tried images, of {when}.", outcomes.success_rate)


def _queue(overview: Overview) -> Iterator[Metric]:
    states = [
        ((str(line.priority), state), float(count))
        for line in overview.queue
        for state, count in (
            ("due", line.due),
            ("retry_later", line.retry_later),
            ("in_hand", line.in_hand),
            ("held", line.held),
        )
    ]
    yield _gauges("queue_jobs", "Open jobs by priority and state.", ("priority", "state"), states)
    yield _gauge("queue_depth", "Open jobs but for those on hold.", overview.depth)
    yield _gauge("queue_urgent_depth", "Of these, priorities 1-5.", overview.urgent_depth)
    age = overview.oldest_due.age
    seconds = age.total_seconds() if age is not None else 0.0
    yield _gauge("oldest_due_seconds", "How long the oldest job of priorities 1-5 has been due.", seconds)
    yield _gauge("deadlines_at_risk", "Images that expire before we reach them.", overview.feasibility.at_risk)
    hosts = overview.shut_hosts
    open_for = [((host.host,), host.open_for.total_seconds()) for host in hosts]
    yield _gauges("breaker_open_seconds", "Since when a host is left alone.", ("host",), open_for)
    behind = [((host.host,), float(host.images)) for host in hosts]
    yield _gauges("breaker_images", "Images behind a host that is left alone.", ("host",), behind)


def _last_hour(stats: HourStats) -> Iterator[Metric]:
    """Of the last hour that was counted; `hourly_stats` counts it five minutes after its end."""
    yield _gauge("hour_start_timestamp_seconds", "Start of the last counted hour, Unix time.", stats.start.timestamp())
    ended = [(("completed",), float(stats.jobs_completed)), (("failed",), float(stats.jobs_failed))]
    yield _gauges("hour_jobs", "Jobs that ended in the last counted hour.", ("status",), ended)
    yield _gauge("hour_success_ratio", "Completed of judged jobs in it.", stats.success_rate)
    if stats.jobs_completed:
        seconds = _seconds(stats.avg_processing_time_ms)
        yield _gauge("hour_processing_seconds", "Mean time that the stages of completed jobs took in it.", seconds)
    yield _gauge("hour_peak_queue_depth", "Most jobs open at one moment of it.", stats.peak_queue_depth)


def _workers(workers: Workers) -> Iterator[Metric]:
    yield _gauge("runs", "Runs that live.", workers.runs)
    yield _gauge("leases", "Images in hand by runs that live.", workers.leases)
    yield _gauge("due_jobs", "Jobs that somebody could take now.", workers.due)
    idle = workers.idle_for.total_seconds() if workers.idle_for is not None else 0.0
    yield _gauge("idle_seconds", "How long work has been due while nobody had any in hand.", idle)


def _figures(figures: Figures) -> Iterator[Metric]:
    jobs = figures.jobs
    ended = [(("completed",), float(jobs.completed)), (("failed",), float(jobs.failed))]
    yield _gauges("jobs_24h", "Jobs that ended in the last 24 hours.", ("status",), ended)
    yield _gauge("jobs_1h", "Jobs that ended in the last hour.", jobs.ended_last_hour)
    stages = [
        (("processing", "mean"), _seconds(jobs.mean_processing_ms)),
        (("processing", "p95"), _seconds(jobs.p95_processing_ms)),
        (("download", "mean"), _seconds(jobs.mean_download_ms)),
        (("upload", "mean"), _seconds(jobs.mean_upload_ms)),
    ]
    yield _gauges("stage_seconds", "How long stages took, of 24 hours.", ("stage", "statistic"), stages)
    counts = {error.kind: error.jobs for error in figures.errors}
    errors = [((kind.value,), float(counts.get(kind, 0))) for kind in FailureKind]
    yield _gauges("errors_24h", "Jobs that failed or are retried, by kind of failure, of 24 hours.", ("kind",), errors)
    yield _gauge("worker_utilization_ratio", "Share of the last hour with work in hand.", figures.utilization)
    yield _gauge("retry_success_ratio", "Completed of retried jobs, of 24 hours.", jobs.retry_success_rate)


def _storage(storage: Storage) -> Iterator[Metric]:
    sizes = [(("objects",), float(storage.rendition_bytes)), (("originals",), float(storage.original_bytes))]
    yield _gauges("storage_bytes", "What the stores hold, as the catalog knows it.", ("store",), sizes)
    counts = [(("objects",), float(storage.rendition_objects)), (("originals",), float(storage.original_objects))]
    yield _gauges("storage_objects", "How many objects that is.", ("store",), counts)


def _delivery(delivery: Delivery) -> Iterator[Metric]:
    yield _gauge(
        "probe_timestamp_seconds", "When URLs were last probed, as a Unix time.", delivery.probed_at.timestamp()
    )
    yield _gauge("probed_urls", "Published URLs that were probed.", delivery.n)
    yield _gauge("broken_urls", "Of these, those that did not give their picture.", delivery.broken)
    timed = delivery.warm.n if delivery.warm else 0
    yield _gauge("timed_urls", "Of these, those that were timed on an open connection.", timed)
    yield _gauge("probes_in_time_ratio", "Share of the timed ones that answered in time.", delivery.share_in_time)
    measured = {"cold": delivery.cold, "warm": delivery.warm, "hit": delivery.hit, "miss": delivery.miss}
    samples = [
        ((name, quantile), _seconds(value))
        for name, percentiles in measured.items()
        if percentiles is not None
        for quantile, value in _quantiles(percentiles)
    ]
    yield _gauges("probe_first_byte_seconds", "Time to the first byte.", ("connection", "quantile"), samples)


def _quantiles(percentiles: Percentiles) -> Iterator[tuple[str, float]]:
    yield "0.5", percentiles.p50
    yield "0.95", percentiles.p95
    yield "0.99", percentiles.p99


def _traffic(traffic: Traffic) -> Iterator[Metric]:
    yield _gauge("cache_hit_ratio", "Of the CDN's requests, of 24 hours.", traffic.hit_ratio)
    yield _gauge("cdn_requests_30d", "Requests that the CDN answered in 30 days.", traffic.requests_30d)
    operations = [(("a",), traffic.class_a_operations), (("b",), traffic.class_b_operations)]
    yield _gauges("r2_operations_30d", "Operations on the buckets in 30 days, by class.", ("class",), operations)


def _disk(disk: Disk) -> Iterator[Metric]:
    yield _gauge("disk_size_bytes", "Of the fullest file system of local stores and an embedded catalog.", disk.total)
    yield _gauge("disk_free_bytes", "What is free of it.", disk.free)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
