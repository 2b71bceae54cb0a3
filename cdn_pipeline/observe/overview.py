"""The state of the whole at a glance: images, queue, failures, hours, runs. `health` judges it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import BACKFILL_PRIORITY, Collection
from cdn_pipeline.engine.tally import NOT_IN_RATE
from cdn_pipeline.failures import Blame, FailureKind
from cdn_pipeline.observe.feasibility import Feasibility, feasibility
from cdn_pipeline.observe.hosts import ShutHost, shut_hosts
from cdn_pipeline.observe.refreshes import Refreshes, refreshes
from cdn_pipeline.observe.snapshot import Snapshot
from cdn_pipeline.observe.standing import OldestDue, Scans, Watch, oldest_due, scans, watch
from cdn_pipeline.observe.stats import HOUR, HourStats, latest_hours
from cdn_pipeline.observe.thresholds import HEALTH_WINDOW, UNRENEWED_ERROR
from cdn_pipeline.queue.delivery_policy import DeliveryPolicy, read_policy
from cdn_pipeline.queue.due import IS_DUE
from cdn_pipeline.queue.fresh_urls import WAITS
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.states import ImageStatus, JobStatus

LAST_HOURS = 6  # as many as one screen has room for


@dataclass(frozen=True, slots=True)
class Images:
    """How many images there are, in which status, and how many the public sees."""

    total: int
    by_status: Mapping[ImageStatus, int]
    published: int

    @property
    def published_share(self) -> float:
        """Of all images, 0 to 1; 1 if there is none."""
        return self.published / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True)
class QueueLine:
    """The open jobs of one priority."""

    priority: int
    due: int
    retry_later: int
    in_hand: int
    held: int
    due_since: datetime | None  # the one that has been due longest
    next_attempt_at: datetime | None  # of those that are retried later

    @property
    def depth(self) -> int:
        """Jobs that somebody waits for: all but those on hold."""
        return self.due + self.retry_later + self.in_hand


@dataclass(frozen=True, slots=True)
class FailureLine:
    """Images that are not completed because of one kind of failure."""

    kind: str
    images: int
    failed_for_good: int
    blame: Blame | None  # None, like the advice: another version of the code knows this kind
    advice: str | None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Images by their last outcome within some time; gone and expired ones are in neither."""

    completed: int
    failed: int  # or still retrying

    @property
    def success_rate(self) -> float | None:
        """0 to 1; None if there is nothing to judge."""
        judged = self.completed + self.failed
        return self.completed / judged if judged else None


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run that has not ended, and what it holds. `lives` if its process still holds its lock."""

    run_id: str
    worker_id: str
    started_at: datetime
    lives: bool
    images: int
    shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Watermarks:
    """How far the source rows have been read: the shard that is furthest behind, and the last full scan of any."""

    shards: int  # that were read at all
    oldest: datetime | None
    last_full_scan: datetime | None


@dataclass(frozen=True, slots=True)
class FreshUrls:
    """Images that wait for a fresh URL, and what providers were asked today (UTC).

    `refused` is why a provider serves none of our questions, if that was its last word today.
    """

    waiting: int
    asked_today: int
    answered_today: int
    refused: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of one collection, as of `now` by the catalog's clock."""

    now: datetime
    images: Images
    watch: Watch
    queue: tuple[QueueLine, ...]  # by priority
    oldest_due: OldestDue
    shut_hosts: tuple[ShutHost, ...]  # the longest shut first
    feasibility: Feasibility
    failures: tuple[FailureLine, ...]  # most images first
    last_hour: Outcomes
    last_day: Outcomes
    hours: tuple[HourStats, ...]  # the latest first
    runs: tuple[RunLine, ...]
    watermarks: Watermarks
    scans: Scans
    fresh_urls: FreshUrls
    refreshes: Refreshes = field(default_factory=Refreshes)
    policy: DeliveryPolicy = field(default_factory=DeliveryPolicy)

    @property
    def depth(self) -> int:
        """Open jobs of all priorities, but for those on hold."""
        return sum(line.depth for line in self.queue)

    @property
    def due(self) -> int:
        """Jobs that somebody could take now."""
        return sum(line.due for line in self.queue)

    @property
    def retry_later(self) -> int:
        """Jobs that wait for their next attempt."""
        return sum(line.retry_later for line in self.queue)

    @property
    def in_hand(self) -> int:
        """Jobs that runs work on."""
        return sum(line.in_hand for line in self.queue)

    @property
    def held(self) -> int:
        """Jobs on hold."""
        return sum(line.held for line in self.queue)

    @property
    def urgent_depth(self) -> int:
        """Of those, what somebody waits for: no backfill and no re-encoding."""
        return sum(line.depth for line in self.queue if line.priority < BACKFILL_PRIORITY)


def look_over(snapshot: Snapshot, collection: Collection) -> Overview:
    """Gathers everything; a few seconds for a million images."""
    connection = snapshot.connection
    values = {"collection": collection.name}
    unfinished = connection.execute(_UNFINISHED, values).all()
    return Overview(
        now=catalog_time(connection),
        images=_images(connection.scalars(_IMAGES, values).one(), unfinished),
        watch=watch(connection, collection),
        queue=tuple(QueueLine(**row) for row in connection.execute(_QUEUE, values).mappings()),
        oldest_due=oldest_due(connection, collection),
        shut_hosts=shut_hosts(connection, collection),
        feasibility=feasibility(connection, collection),
        failures=_failures(unfinished),
        last_hour=outcomes_within(connection, collection, HOUR),
        last_day=outcomes_within(connection, collection, HEALTH_WINDOW),
        hours=tuple(latest_hours(connection, LAST_HOURS)),
        runs=_runs(snapshot, values),
        watermarks=Watermarks(**connection.execute(_WATERMARKS, values).mappings().one()),
        scans=scans(connection, collection, UNRENEWED_ERROR),
        fresh_urls=FreshUrls(**connection.execute(_FRESH_URLS, values).mappings().one()),
        refreshes=refreshes(connection, collection),
        policy=read_policy(connection),
    )


# Finished images are only counted, unfinished ones looked at: those have a partial index of their own.
_IMAGES = sa.text("SELECT count(*) FROM cdn_image_assets WHERE collection = :collection")

_UNFINISHED = sa.text(f"""
    SELECT processing_status AS status, failure_kind, count(*) AS images,
           count(processing_completed_at) AS published
    FROM cdn_image_assets
    WHERE collection = :collection AND processing_status <> '{ImageStatus.COMPLETED}'
    GROUP BY processing_status, failure_kind ORDER BY images DESC
""")


def _images(total: int, unfinished: Sequence[sa.Row[Any]]) -> Images:
    by_status = Counter({ImageStatus.COMPLETED: total - sum(row.images for row in unfinished)})
    for row in unfinished:
        by_status[ImageStatus(row.status)] += row.images
    # What was completed once stays visible, whatever became of the image later.
    published = by_status[ImageStatus.COMPLETED] + sum(row.published for row in unfinished)
    return Images(total, {status: by_status[status] for status in ImageStatus}, published)


def _failures(unfinished: Sequence[sa.Row[Any]]) -> tuple[FailureLine, ...]:
    images, for_good = Counter[str](), Counter[str]()
    for row in unfinished:
        if row.failure_kind:
            images[row.failure_kind] += row.images
            for_good[row.failure_kind] += row.images * (row.status == ImageStatus.FAILED)
    return tuple(_failure(name, count, for_good[name]) for name, count in images.most_common())


def _failure(name: str, images: int, for_good: int) -> FailureLine:
    kind = FailureKind.of(name)
    return FailureLine(name, images, for_good, kind.blame if kind else None, kind.advice if kind else None)


_RETRY_LATER = (
    f"status = '{JobStatus.QUEUED}' AND held_at IS NULL AND next_attempt_at > clock_timestamp()"  # the rest is due
)

_QUEUE = sa.text(f"""
    SELECT priority,
           count(*) FILTER (WHERE {IS_DUE}) AS due,
           count(*) FILTER (WHERE {_RETRY_LATER}) AS retry_later,
           count(*) FILTER (WHERE status = '{JobStatus.PROCESSING}') AS in_hand,
           count(*) FILTER (WHERE status = '{JobStatus.QUEUED}' AND held_at IS NOT NULL) AS held,
           min(greatest(created_at, next_attempt_at)) FILTER (WHERE {IS_DUE}) AS due_since,
           min(next_attempt_at) FILTER (WHERE {_RETRY_LATER}) AS next_attempt_at
    FROM cdn_image_jobs WHERE collection = :collection AND {IS_OPEN} GROUP BY priority ORDER BY priority
""")

# Each image once, by its last outcome; one that is being retried has no later outcome than its last failure.
_OUTCOMES = sa.text(f"""
    SELECT count(*) FILTER (WHERE status = '{JobStatus.COMPLETED}') AS completed,
           count(*) FILTER (WHERE status <> '{JobStatus.COMPLETED}' AND failure_kind <> ALL(:not_in_rate)) AS failed
    FROM (
        SELECT DISTINCT ON (image) status, failure_kind
        FROM (
            SELECT coalesce(asset_id, id) AS image, status, failure_kind, completed_at FROM cdn_image_jobs
            WHERE collection = :collection AND completed_at > now() - CAST(:window AS interval)
            UNION ALL
            SELECT asset_id, status, failure_kind, NULL FROM cdn_image_jobs
            WHERE collection = :collection AND {IS_OPEN} AND retry_count > 0
        ) AS recent
        ORDER BY image, completed_at DESC NULLS FIRST
    ) AS last_outcome
""")


def outcomes_within(connection: sa.Connection, collection: Collection, window: timedelta) -> Outcomes:
    """Counts the images by their last outcome within this time."""
    values = {"collection": collection.name, "window": window, "not_in_rate": sorted(NOT_IN_RATE)}
    return Outcomes(**connection.execute(_OUTCOMES, values).mappings().one())


_RUNS = sa.text(f"""
    SELECT r.run_id, r.worker_id, r.started_at, count(j.id) AS images,
           coalesce(array_agg(DISTINCT j.shard ORDER BY j.shard) FILTER (WHERE j.id IS NOT NULL), '{{}}') AS shards
    FROM cdn_runs r
    LEFT JOIN cdn_image_jobs j
           ON j.run_id = r.run_id AND j.status = '{JobStatus.PROCESSING}' AND j.collection = :collection
    WHERE r.ended_at IS NULL GROUP BY r.run_id ORDER BY r.started_at
""")


def _runs(snapshot: Snapshot, values: Mapping[str, Any]) -> tuple[RunLine, ...]:
    return tuple(
        RunLine(
            row.run_id, row.worker_id, row.started_at, row.run_id not in snapshot.dead, row.images, tuple(row.shards)
        )
        for row in snapshot.connection.execute(_RUNS, values)
    )


_WATERMARKS = sa.text("""
    SELECT count(*) AS shards, min(scanned_at) AS oldest, max(fully_scanned_at) AS last_full_scan
    FROM cdn_source_watermarks WHERE collection = :collection
""")

_FRESH_URLS = sa.text(f"""
    SELECT (SELECT count(*) FROM cdn_image_assets a WHERE a.collection = :collection AND {WAITS}) AS waiting,
           coalesce(sum(requests), 0) AS asked_today, coalesce(sum(answered), 0) AS answered_today,
           max(refused) AS refused
    FROM cdn_provider_usage WHERE day = CAST(now() AT TIME ZONE 'UTC' AS date)
""")
