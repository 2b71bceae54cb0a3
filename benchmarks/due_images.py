"""Images that become due in a catalog of `big_catalog`, and how their jobs end, without a picture being touched."""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.sources.app_database import shard_of
from cdn_pipeline.sources.discovery import ImageKey, ImageReference
from cdn_pipeline.sources.instagram import SourceUrl


def sightings(owner_ids: Sequence[str]) -> list[ImageReference]:
    """A new avatar for every other owner, in place of the one that it had, and a new post for the rest."""
    return [_new_post(owner) if number % 2 else _new_avatar(owner) for number, owner in enumerate(owner_ids)]


def _new_avatar(owner_id: str) -> ImageReference:
    return _reference(owner_id, ImageKey("profile_avatar", owner_id, "avatar"), taken_at=None)


def _new_post(owner_id: str) -> ImageReference:
    key = ImageKey("post_thumbnail", str(uuid.uuid4()), uuid.uuid4().hex)
    return _reference(owner_id, key, taken_at=datetime.now(UTC))


def _reference(owner_id: str, key: ImageKey, taken_at: datetime | None) -> ImageReference:
    now, name = datetime.now(UTC), uuid.uuid4().hex
    url = f"https://scontent.cdninstagram.com/v/t51.2885-15/{name}_n.jpg?oh={'x' * 270}"
    return ImageReference(
        key=key,
        owner_id=owner_id,
        shard=shard_of(uuid.UUID(owner_id)),
        taken_at=taken_at,
        candidates=(SourceUrl(url, f"file:{name}_n", 101_080, now + timedelta(days=3)),),
        observed_at=now,
    )


def published(job: DueJob) -> Outcome:
    """The outcome of a job that went all the way: a new original, and new renditions of it."""
    sha256 = hashlib.sha256(job.job_id.bytes).hexdigest()
    return Outcome(
        job_id=job.job_id,
        asset_id=job.asset_id,
        shard=job.shard,
        verdict=Verdict.PUBLISHED,
        stage=Stage.PUBLISH,
        identity=job.identity,
        source_url=job.urls[0],
        original=StoredOriginal(
            sha256, job.identity, job.ranks[0], 110_000, "jpeg", "image/jpeg", None, None, width=1080, height=1080
        ),
        renditions=tuple(_rendition(job, sha256, side) for side in job.recipe.longest_sides),
        placeholder="LEHV6nWB2yk8pyo0adR*.7kCMdnj",
        download_ms=300,
        transcode_ms=80,
        upload_ms=40,
        total_ms=420,
        bytes_in=110_000,
        bytes_out=40_000,
        claimed_at=job.claimed_at,
    )


def _rendition(job: DueJob, original_sha256: str, side: int) -> NewRendition:
    content_hash = hashlib.sha256(f"{original_sha256} {side}".encode()).hexdigest()
    return NewRendition(
        size_name=str(side),
        format=job.recipe.format,
        width=side,
        height=side,
        file_size=20_000,
        content_hash=content_hash,
        path=f"/th/ig/{job.owner_id}/{job.media_id}/{side}/{content_hash[:16]}.{job.recipe.format}",
        original_sha256=original_sha256,
        recipe=job.recipe.name,
        recipe_version=job.recipe.version,
        encoder="none",
    )
