"""What happens outside of the pipeline: rows come, change and go, URLs are signed again, the origin has bad hours.

Drawn from a seed, so that the same plan is the same world.
"""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import sqlalchemy as sa

from benchmarks.simulation.timeline import Action, Timeline
from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import DEFAULT_RATES, Fault, Misbehaviour
from cdn_pipeline.demo.origin import Origin

_POST_EVERY = timedelta(days=3)  # and profile, on average; likewise below
_NEW_AVATAR_EVERY = timedelta(days=8)
_DELETED_POST_EVERY = timedelta(days=12)
# URLs live four days at least: most profiles are fetched again in time, a few after some of their URLs have died.
_FETCHED_AGAIN_AFTER = (timedelta(days=2), timedelta(days=4, hours=6))
_LATE_SHARE = 0.15  # of new posts: their row is written when their URL has 10 to 16 hours left at least
_LATE_BY = (timedelta(days=3, hours=8), timedelta(days=3, hours=14))
_DEAD_SHARE = 0.05  # of new posts: their row is written when their URL is dead
_DEAD_BY = timedelta(days=6)
_DELETED_PICTURE_SHARE = 0.04  # of new posts: gone at the origin although the row shows it
_FAULTS_OF_BAD_HOURS = (Fault.SERVER_ERROR, Fault.SERVER_ERROR, Fault.TRUNCATED, Fault.RATE_LIMITED)


@dataclass(frozen=True, slots=True)
class BadHours:
    """A time in which this share (0 to 1) of the origin's answers is wrong; 1 is an outage."""

    start: datetime
    end: datetime
    share: float


class Weather(Misbehaviour):
    """The usual faults of single pictures, and hours in which the origin as a whole misbehaves."""

    def __init__(self, bad_hours: Sequence[BadHours], *, seed: int) -> None:
        super().__init__(DEFAULT_RATES, seed=seed)
        self._bad_hours = bad_hours
        self._chance = random.Random(seed)

    def next_fault(self, path: str, url_expires_at: datetime) -> Fault | None:
        """A bad hour's fault, or else the picture's own."""
        now = datetime.now(UTC)
        share = max((bad.share for bad in self._bad_hours if bad.start <= now < bad.end), default=0.0)
        if self._chance.random() >= share:
            return super().next_fault(path, url_expires_at)
        return Fault.SERVER_ERROR if share == 1 else self._chance.choice(_FAULTS_OF_BAD_HOURS)


class World:
    """The application's database over time. `begin` plans the first events, and every event plans what follows it."""

    def __init__(self, source: sa.Engine, origin: Origin, timeline: Timeline, *, seed: int, posts: int) -> None:
        """`posts` is what a profile has when it arrives."""
        self._source = source
        self._origin = origin
        self._timeline = timeline
        self._chance = random.Random(seed)
        self._posts = posts
        self.profiles = 0
        self.inserted: dict[str, datetime] = {}  # rows (profiles and posts, by id) whose URLs were alive
        self.replaced: list[tuple[str, datetime]] = []  # profiles that got another avatar
        self.dead: set[str] = set()  # posts that arrived with dead URLs

    def begin(self, start: datetime, end: datetime, *, at_first: int, per_day: float) -> None:
        """Plans the arrival of profiles: some in the first hours, others at random hours."""
        arrivals = at_first + round(per_day * ((end - start) / timedelta(days=1)))
        for number in range(arrivals):
            within = timedelta(hours=3) if number < at_first else end - start
            self._timeline.at(start + within * self._chance.random(), self.add_profile)

    def add_profile(self, now: datetime) -> None:
        """A profile with its posts; from now on it lives."""
        self.profiles += 1
        profile = app_database.add_profile(
            self._source, self._origin.signer, seed=self.profiles, posts=self._posts, now=now
        )
        self.inserted |= {str(row): now for row in (profile, *self._posts_of(profile))}
        self._fetch_again_later(profile, now)
        self._sometimes(now, _POST_EVERY, lambda then: self._add_post(profile, then))
        self._sometimes(now, _NEW_AVATAR_EVERY, lambda then: self._replace_avatar(profile, then))
        self._sometimes(now, _DELETED_POST_EVERY, lambda then: self._delete_post(profile))

    def _sometimes(self, now: datetime, mean: timedelta, happen: Action) -> None:
        """Plans something that happens again and again, at random times."""

        def happens(then: datetime) -> None:
            happen(then)
            self._sometimes(then, mean, happen)

        self._timeline.at(now + mean * self._chance.expovariate(1), happens)

    def _fetch_again_later(self, profile: uuid.UUID, now: datetime) -> None:
        def fetch(then: datetime) -> None:
            app_database.resign_profile(self._source, self._origin.signer, profile, now=then)
            self._fetch_again_later(profile, then)

        earliest, latest = _FETCHED_AGAIN_AFTER
        self._timeline.at(now + earliest + (latest - earliest) * self._chance.random(), fetch)

    def _add_post(self, profile: uuid.UUID, now: datetime) -> None:
        late_by, draw = timedelta(), self._chance.random()
        if draw < _DEAD_SHARE:
            late_by = _DEAD_BY
        elif draw < _DEAD_SHARE + _LATE_SHARE:
            late_by = _LATE_BY[0] + (_LATE_BY[1] - _LATE_BY[0]) * self._chance.random()
        post = app_database.add_post(self._source, self._origin.signer, profile, now=now, signed_at=now - late_by)
        if late_by == _DEAD_BY:
            self.dead.add(str(post))
        else:
            self.inserted[str(post)] = now
        if self._chance.random() < _DELETED_PICTURE_SHARE:
            self._delete_picture(post)

    def _replace_avatar(self, profile: uuid.UUID, now: datetime) -> None:
        app_database.replace_avatar(self._source, self._origin.signer, profile, now=now)
        self.replaced.append((str(profile), now))

    def _delete_post(self, profile: uuid.UUID) -> None:
        if posts := self._posts_of(profile):
            app_database.delete_post(self._source, self._chance.choice(posts))

    def _delete_picture(self, post: uuid.UUID) -> None:
        query = sa.select(app_database.posts_table.c.display_url).where(app_database.posts_table.c.id == post)
        with self._source.connect() as connection:
            url: str = connection.execute(query).scalar_one()
        self._origin.delete_picture(urlsplit(url).path)

    def _posts_of(self, profile: uuid.UUID) -> Sequence[uuid.UUID]:
        posts = app_database.posts_table
        query = sa.select(posts.c.id).where(posts.c.profile_id == profile).order_by(posts.c.id)
        with self._source.connect() as connection:
            return connection.scalars(query).all()
