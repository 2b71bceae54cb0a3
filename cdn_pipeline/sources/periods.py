"""Which profiles of the application database have rows of a period: posts by when they were taken, profiles by their
last update. Pages of the primary key, so that no page is dearer than another."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.sources.app_database import reading
from cdn_pipeline.sources.discovery import ImageReference

_BEFORE_ALL = uuid.UUID(int=0)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` until before `end`; None: until now, and what has a date in the future."""

    start: datetime
    end: datetime | None = None

    def __contains__(self, moment: datetime | None) -> bool:
        """What has no date is in no period."""
        return moment is not None and self.start <= moment and (self.end is None or moment < self.end)


def is_of_period(reference: ImageReference, period: Period) -> bool:
    """Whether an image belongs to it: a post's by when it was taken, any other by its row's last update."""
    is_of_post = reference.key.source_type.startswith("post_")
    return (reference.taken_at if is_of_post else reference.observed_at) in period


def profiles_of_period(engine: sa.Engine, period: Period, *, page: int) -> Iterator[Sequence[uuid.UUID]]:
    """Yields the ids of profiles that were updated in the period or have a post of it, in order, `page` at a time.

    Raises:
        SourceSchemaError: there is no such table or column.
    """
    after = _BEFORE_ALL
    while True:
        values = {"after": after, "start": period.start, "end": period.end, "page": page}
        with reading(engine) as connection:
            ids = connection.scalars(_PROFILES, values).all()
        if ids:
            yield ids
        if len(ids) < page:
            return
        after = ids[-1]


def _within(column: str) -> str:
    return f"{column} >= :start AND (CAST(:end AS timestamptz) IS NULL OR {column} < :end)"


_PROFILES = sa.text(f"""
    SELECT id FROM profiles
    WHERE id > :after AND (({_within("updated_at")})
        OR EXISTS (SELECT FROM posts WHERE posts.profile_id = profiles.id AND {_within("taken_at")}))
    ORDER BY id LIMIT :page
""")
