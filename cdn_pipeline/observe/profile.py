"""An owner as a whole: its images, and what was asked, answered and erased of it."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.lookup import find_images
from cdn_pipeline.observe.provider import ProviderAnswer, provider_answers
from cdn_pipeline.observe.snapshot import Snapshot
from cdn_pipeline.observe.story import ImageStory, tell_stories
from cdn_pipeline.queue.delivery_policy import DeliveryPolicy, has_cdn_urls, read_policy
from cdn_pipeline.queue.erasures import ErasureState

_REFRESHES_TOLD = 5


@dataclass(frozen=True, slots=True)
class RefreshLine:
    """A user's request to have the owner fetched again; `answer` is None while it is open."""

    requested_at: datetime
    finished_at: datetime | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class ErasureLine:
    """An erasure of the owner (`scope` owner) or of one of its images, that has not been lifted."""

    id: uuid.UUID
    scope: str
    state: ErasureState
    images: int
    requested_by: str
    reason: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ProfileStory:
    """An owner, as of `now` by the catalog's clock. Images without a date (the avatar) first, then the latest."""

    now: datetime
    owner_id: str
    images: Sequence[ImageStory]
    provider: ProviderAnswer | None  # None: never asked
    refreshes: Sequence[RefreshLine]  # the latest first
    erasures: Sequence[ErasureLine]  # the latest first
    policy: DeliveryPolicy

    @property
    def is_known(self) -> bool:
        """Whether the catalog knows anything of this owner."""
        return bool(self.images or self.provider or self.refreshes or self.erasures)

    @property
    def has_cdn_urls(self) -> bool:
        """Whether frontends are given CDN URLs of this owner's pictures."""
        return self.policy.is_on and has_cdn_urls(self.owner_id, self.policy.percentage)


def owner_of(connection: sa.Connection, collection: Collection, subject: str) -> str:
    """The owner of the images that `subject` means; the subject itself if it means none, as an erased owner's id."""
    found = find_images(connection, collection, subject).image_ids
    if not found:
        return subject
    owner_id: str = connection.execute(_OWNER, {"id": found[0]}).scalar_one()
    return owner_id


_OWNER = sa.text("SELECT owner_id FROM cdn_image_assets WHERE id = :id")


def tell_profile(snapshot: Snapshot, collection: Collection, owner_id: str) -> ProfileStory:
    """Everything that the catalog knows of an owner."""
    connection, values = snapshot.connection, {"collection": collection.name, "owner_id": owner_id}
    return ProfileStory(
        now=catalog_time(connection),
        owner_id=owner_id,
        images=tell_stories(snapshot, collection, connection.scalars(_IMAGES, values).all()),
        provider=provider_answers(connection, collection, [owner_id]).get(owner_id),
        refreshes=[RefreshLine(**row) for row in connection.execute(_REFRESHES, values).mappings()],
        erasures=[_erasure(row) for row in connection.execute(_ERASURES, values).mappings()],
        policy=read_policy(connection),
    )


def _erasure(row: sa.RowMapping) -> ErasureLine:
    return ErasureLine(**{**row, "state": ErasureState(row["state"])})


_IMAGES = sa.text("""
    SELECT id FROM cdn_image_assets WHERE collection = :collection AND owner_id = :owner_id
    ORDER BY taken_at DESC NULLS FIRST, source_id, source_type DESC, created_at, media_id
""")

_REFRESHES = sa.text(f"""
    SELECT requested_at, finished_at, answer FROM cdn_refreshes
    WHERE collection = :collection AND owner_id = :owner_id
    ORDER BY requested_at DESC LIMIT {_REFRESHES_TOLD}
""")

_ERASURES = sa.text(f"""
    SELECT id, scope, state, images, requested_by, reason, created_at FROM cdn_erasures
    WHERE collection = :collection AND owner_id = :owner_id AND state <> '{ErasureState.LIFTED}'
    ORDER BY created_at DESC
""")
