"""How things stand, on catalogs that the queue's own functions have written under a clock that moves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo import fast_clock
from cdn_pipeline.failures import FailureKind
from cdn_pipeline.observe.standing import Watch, oldest_due, scans, watch
from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.intake import known_images, record
from cdn_pipeline.queue.leases import hold_run
from cdn_pipeline.queue.outcomes import Outcome, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.sources.discovery import CLOCK_TOLERANCE, ImageKey, ImageReference, compare
from cdn_pipeline.sources.instagram import SourceUrl
from cdn_pipeline_tests.pipelines import BASE_URL
from cdn_pipeline_tests.queue.catalogs import (
    RUN,
    due_now,
    outcome,
    published,
    reference,
    see,
    session,
    source_url,
    take,
    take_one,
)

IMAGES = ("1", "2")
HOUR = timedelta(hours=1)


class World:
    """A catalog, its movable clock, and what happens to images in it."""

    def __init__(self, engine: sa.Engine, connection: sa.Connection) -> None:
        self.engine = engine
        self.connection = connection
        self._ahead = timedelta()

    def clear(self) -> None:
        self.connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))

    @property
    def now(self) -> datetime:
        now = self.connection.scalar(sa.text("SELECT clock_timestamp()"))
        assert isinstance(now, datetime)
        return now

    def advance(self, time: timedelta) -> None:
        self._ahead += time
        fast_clock.set_offset(self.engine, self._ahead)

    def see(self, image: str, picture: int, expires_at: datetime) -> None:
        """Discovery finds this picture under a URL that lives so long."""
        now = self.now
        url = SourceUrl(f"https://cdn.example/{picture}?oe={expires_at.timestamp()}", f"file:{picture}", 1, expires_at)
        key = ImageKey("profile_avatar", image, "avatar")
        seen = ImageReference(key, "owner", "00", None, (url,), now)
        record(self.connection, INSTAGRAM, [compare(seen, known_images(self.connection, [key]).get(key), now)])

    def attempt(self, image: str, failure: FailureKind | None) -> None:
        """The image's job, if one is open, is tried once; a dead URL is not asked."""
        due_now(self.connection)
        for job in take(self.connection):
            verdict = Verdict.RELEASED if job.source_id != image else VERDICTS[failure]
            settle(self.connection, RUN, [_outcome(job, verdict, failure, self.now)])

    def watch(self) -> Watch:
        return watch(self.connection, INSTAGRAM)


VERDICTS = {
    None: Verdict.PUBLISHED,
    FailureKind.CONNECTION_FAILED: Verdict.RETRYING,
    FailureKind.SOURCE_URL_EXPIRED: Verdict.WAITING,
    FailureKind.SOURCE_FORBIDDEN: Verdict.WAITING,
    FailureKind.IMAGE_TOO_LARGE: Verdict.FAILED,
}


def _outcome(job: DueJob, verdict: Verdict, failure: FailureKind | None, now: datetime) -> Outcome:
    assert job.url_expires_at is not None
    if verdict is Verdict.RELEASED:
        return outcome(job, verdict)
    if job.url_expires_at < now - CLOCK_TOLERANCE or (verdict is Verdict.RETRYING and job.url_expires_at < now):
        return outcome(job, Verdict.WAITING, failure=FailureKind.SOURCE_URL_EXPIRED)
    if verdict is Verdict.PUBLISHED:
        return replace(published(job), renditions=())
    return outcome(job, verdict, failure=failure)


@pytest.fixture
def world(empty_database: str) -> Iterator[World]:
    engine = sa.create_engine(empty_database)
    fast_clock.install(engine)
    migrate(engine, BASE_URL)
    with session(engine) as connection:
        yield World(engine, connection)
    engine.dispose()


# -- images lost on our watch --


NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Model:
    """What we should think of one image."""

    picture: int = 0
    expires_at: datetime = NEVER
    seen_alive: bool = False
    have: int | None = None  # the picture whose original we have
    has_job: bool = False
    failed: bool = False
    refused: bool = False

    def see(self, picture: int, expires_at: datetime, now: datetime) -> None:
        alive = expires_at > now - CLOCK_TOLERANCE
        if picture != self.picture:
            self.picture, self.expires_at, self.seen_alive = picture, expires_at, expires_at > now
            self.has_job, self.failed, self.refused = alive, False, False
        elif expires_at > self.expires_at:
            self.expires_at = expires_at
            self.seen_alive |= expires_at > now
            if alive and self.have != picture and not self.failed and not self.has_job:
                self.has_job, self.refused = True, False

    def attempt(self, failure: FailureKind | None, now: datetime) -> None:
        if not self.has_job:
            return
        dead = self.expires_at < now - CLOCK_TOLERANCE
        if failure is FailureKind.CONNECTION_FAILED and self.expires_at > now:
            return
        self.has_job = False
        if dead or failure in (FailureKind.CONNECTION_FAILED, FailureKind.SOURCE_URL_EXPIRED):
            return
        self.have = self.picture if failure is None else self.have
        self.failed = failure is FailureKind.IMAGE_TOO_LARGE
        self.refused = failure is FailureKind.SOURCE_FORBIDDEN

    def lost(self, now: datetime) -> bool:
        missing = self.picture != 0 and self.have != self.picture
        return missing and self.seen_alive and self.expires_at < now and not self.failed and not self.refused

    @property
    def arrived_dead(self) -> bool:
        return self.picture != 0 and self.have != self.picture and not self.seen_alive


HOURS_TO_LIVE = st.sampled_from([-30, 10, 60])
EVENTS = st.one_of(
    st.tuples(st.just("another picture"), HOURS_TO_LIVE | st.just(-0.5)),
    st.tuples(st.just("signed again"), HOURS_TO_LIVE),
    st.tuples(st.just("time passes"), st.sampled_from([0.4, 12, 80])),
    st.tuples(st.just("tried"), st.sampled_from(list(VERDICTS))),
)
HISTORIES = st.lists(st.tuples(st.sampled_from(IMAGES), EVENTS), max_size=14)


@given(HISTORIES)
@example([("1", ("another picture", 10)), ("1", ("time passes", 12))])  # we came too late
@example([("1", ("another picture", -30))])  # arrived dead
@example(  # refused, then lost under a fresh URL
    [
        ("1", ("another picture", 10)),
        ("1", ("tried", FailureKind.SOURCE_FORBIDDEN)),
        ("1", ("signed again", 60)),
        ("1", ("time passes", 80)),
    ]
)
@example(  # what we have is the picture before
    [("1", ("another picture", 10)), ("1", ("tried", None)), ("1", ("another picture", 10)), ("1", ("time passes", 12))]
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_image_is_lost_exactly_when_it_was_alive_and_we_were_late(
    world: World, history: list[tuple[str, tuple[str, object]]]
) -> None:
    world.clear()
    models = {image: Model() for image in IMAGES}
    pictures = iter(range(1, 100))
    for image, (event, value) in history:
        model = models[image]
        match event, value:
            case "time passes", int() | float() as hours:
                world.advance(HOUR * hours)
            case "tried", failure:
                assert failure is None or isinstance(failure, FailureKind)
                model.attempt(failure, world.now)
                world.attempt(image, failure)
            case _, int() | float() as hours:
                known = event == "signed again" and model.picture
                picture, expires_at = known or next(pictures), world.now + HOUR * hours
                model.see(picture, expires_at, world.now)
                world.see(image, picture, expires_at)
        found = world.watch()
        assert found.lost == sum(model.lost(world.now) for model in models.values()), (event, value)
        assert found.arrived_dead == sum(model.arrived_dead for model in models.values()), (event, value)


def test_a_lost_image_is_named_so_that_it_can_be_explained(world: World) -> None:
    for number in range(25):
        world.see(str(number), number + 1, world.now + HOUR * (number + 1))
    assert world.watch() == Watch(0, 0, 0, ())
    world.advance(HOUR * 30)

    found = world.watch()

    assert (found.lost, len(found.samples)) == (25, 20)
    latest = world.connection.execute(
        sa.text("SELECT id, url_expires_at FROM cdn_image_assets ORDER BY url_expires_at DESC LIMIT 1")
    ).one()
    expired_at = f"{latest.url_expires_at.astimezone(UTC):%Y-%m-%d %H:%M}"
    assert found.samples[0] == f"{latest.id} (profile_avatar, shard 00): its URL expired {expired_at} UTC"


def test_a_url_that_never_expires_is_never_lost(world: World) -> None:
    see(world.connection, reference(source_url(lives=None)))
    world.advance(timedelta(days=1000))
    assert world.watch() == Watch(0, 0, 0, ())


def test_a_loss_is_recent_for_seven_days_and_tells_whether_a_fresh_url_can_come(world: World) -> None:
    world.see("1", 1, world.now + HOUR)
    world.see("2", 2, world.now + HOUR * 48)
    world.connection.execute(sa.text("UPDATE cdn_image_assets SET removed_at = now() WHERE source_id = '1'"))
    world.advance(timedelta(days=7))

    found = world.watch()

    assert (found.lost, found.lost_lately) == (2, 2)
    there, removed = found.samples
    assert there.endswith(" UTC")
    assert removed.endswith(" UTC, its source row is removed")
    world.advance(timedelta(days=1))
    assert (world.watch().lost, world.watch().lost_lately) == (2, 1)
    world.advance(timedelta(days=2))
    assert (world.watch().lost, world.watch().lost_lately) == (2, 0)


def test_what_was_refused_is_not_lost_when_an_operator_has_it_tried_again_too_late(world: World) -> None:
    world.see("1", 1, world.now + HOUR)
    world.attempt("1", FailureKind.IMAGE_TOO_LARGE)
    world.advance(HOUR * 10)
    world.connection.execute(sa.text("UPDATE cdn_image_assets SET processing_status = 'pending', failure_kind = NULL"))
    world.connection.execute(
        sa.text("""INSERT INTO cdn_image_jobs (asset_id, collection, shard, job_type, source_url, deadline)
                   SELECT id, collection, shard, 'retry', source_url, url_expires_at FROM cdn_image_assets""")
    )
    assert world.watch().lost == 0
    world.attempt("1", None)
    assert world.connection.scalar(sa.text("SELECT failure_kind FROM cdn_image_assets")) == "source_url_expired"
    assert world.watch().lost == 0


def test_an_image_in_hand_is_not_lost_yet(world: World) -> None:
    world.see("1", 1, world.now + HOUR)
    job = take_one(world.connection)
    world.advance(HOUR * 2)
    assert world.watch().lost == 0
    settle(world.connection, RUN, [outcome(job, Verdict.RELEASED)])
    assert world.watch().lost == 1


def test_another_collections_images_are_not_counted(world: World) -> None:
    world.see("1", 1, world.now - HOUR * 30)
    assert watch(world.connection, replace(INSTAGRAM, name="other")) == Watch(0, 0, 0, ())


# -- due jobs --


def test_nothing_due_has_no_age(world: World) -> None:
    found = oldest_due(world.connection, INSTAGRAM)
    assert (found.due, found.age, found.shard) == (0, None, None)


def test_the_job_that_has_been_due_longest_is_found(world: World) -> None:
    see(world.connection, reference(image="1", shard="07"))
    job = take_one(world.connection)
    settle(world.connection, RUN, [outcome(job, Verdict.RETRYING, retry_in_seconds=3600.0)])  # due an hour later
    world.advance(HOUR * 3)
    see(world.connection, reference(image="2", shard="08"))
    world.advance(HOUR * 2)

    found = oldest_due(world.connection, INSTAGRAM)

    assert (found.due, found.shard) == (2, "07")
    assert found.age is not None
    assert HOUR * 4 <= found.age < HOUR * 4.1


@pytest.mark.parametrize("change", ["priority = 6", "held_at = now()", "next_attempt_at = now() + interval '1 min'"])
def test_what_waits_by_design_is_not_left_waiting(world: World, change: str) -> None:
    see(world.connection, reference())
    world.advance(HOUR * 9)
    world.connection.execute(sa.text(f"UPDATE cdn_image_jobs SET {change}"))
    assert oldest_due(world.connection, INSTAGRAM).due == 0


def test_a_job_whose_host_is_left_alone_is_not_left_waiting_until_that_may_be_asked_again(world: World) -> None:
    see(world.connection, reference())
    world.advance(HOUR * 9)
    world.connection.execute(
        sa.text("INSERT INTO cdn_hosts (host, opened_at, retry_at) VALUES ('cdn.example', now(), now() + :hour)"),
        {"hour": HOUR},
    )
    assert oldest_due(world.connection, INSTAGRAM).due == 0
    world.advance(HOUR * 3)
    found = oldest_due(world.connection, INSTAGRAM)
    assert found.due == 1
    assert found.age is not None
    assert HOUR * 2 <= found.age < HOUR * 2.1


def test_a_job_in_hand_is_not_left_waiting(world: World) -> None:
    see(world.connection, reference())
    take_one(world.connection)
    assert oldest_due(world.connection, INSTAGRAM).due == 0


# -- scans --


def test_before_the_first_scan_nothing_has_begun_and_nothing_is_stale(world: World) -> None:
    found = scans(world.connection, INSTAGRAM, HOUR)
    assert (found.begun, found.stale, found.oldest) == (False, (), None)


def test_a_first_backfill_has_as_much_time_as_a_night(world: World) -> None:
    with hold_run(world.engine, "first"):
        _scanned(world.connection, "00", HOUR * 0)
        world.advance(HOUR * 25)
        assert scans(world.connection, INSTAGRAM, HOUR * 26).stale == ()
        for shard in SHARDS[:-1]:
            _scanned(world.connection, shard, HOUR * 0)
        world.advance(HOUR * 2)
        assert scans(world.connection, INSTAGRAM, HOUR * 26).stale == ("3f",)


def test_shards_are_stale_that_were_not_read_in_full_within_the_limit(world: World) -> None:
    mark = partial(_scanned, world.connection)
    for shard in SHARDS:
        mark(shard, HOUR)
    mark("0a", HOUR * 27)
    mark("3f", None)  # only changed rows were ever read

    found = scans(world.connection, INSTAGRAM, HOUR * 26)

    assert found.begun
    assert found.stale == ("0a", "3f")
    assert found.oldest is not None
    assert HOUR * 27 <= world.now - found.oldest < HOUR * 27.1


def test_a_shard_that_was_never_read_is_stale_when_another_one_is(world: World) -> None:
    for shard in SHARDS[1:]:
        _scanned(world.connection, shard, HOUR)
    assert scans(world.connection, INSTAGRAM, HOUR * 26).stale == ()
    _scanned(world.connection, "01", HOUR * 27)
    assert scans(world.connection, INSTAGRAM, HOUR * 26).stale == ("00", "01")


def _scanned(connection: sa.Connection, shard: str, ago: timedelta | None) -> None:
    connection.execute(
        sa.text("""
            INSERT INTO cdn_source_watermarks (collection, shard, scanned_at, fully_scanned_at)
            VALUES ('instagram', :shard, now(), now() - CAST(:ago AS interval))
            ON CONFLICT (collection, shard) DO UPDATE SET fully_scanned_at = excluded.fully_scanned_at"""),
        {"shard": shard, "ago": ago},
    )
