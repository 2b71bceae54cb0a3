"""The pictures of profiles as a frontend wants them: one query, whatever the number of profiles."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.api.serving import Serving
from cdn_pipeline.collections import Collection
from cdn_pipeline.queue.delivery_policy import CDN_PERCENTAGE, has_cdn_urls
from cdn_pipeline.queue.intake import IS_OPEN
from cdn_pipeline.queue.states import ImageStatus

Document = dict[str, Any]

_AVATAR = "profile_avatar"
_CHILD = "post_carousel"


def profiles_media(serving: Serving, profile_ids: Sequence[str], posts: int) -> dict[str, Document]:
    """A document for each profile that has images, by its id, with its latest `posts`."""
    values = query_values(serving.collection, profile_ids, posts)
    rows = serving.read(lambda connection: connection.execute(IMAGES_OF_PROFILES, values).all())
    documents = {}
    for owner_id, of in groupby(rows, attrgetter("owner_id")):
        images = list(of)
        on_cdn = has_cdn_urls(owner_id, images[0].cdn_percentage)
        profile = _Profile(
            owner_id,
            serving.settings.public_base_url,
            tuple(size.name for size in serving.collection.recipe.sizes),
            on_cdn=on_cdn,
            names_legacy_urls=serving.settings.media_legacy_fallback or not on_cdn,
        )
        documents[owner_id] = profile.document(images)
    return documents


def query_values(collection: Collection, profile_ids: Sequence[str], posts: int) -> dict[str, Any]:
    """What the query's parameters are bound to."""
    return {
        "collection": collection.name,
        "owner_ids": list(profile_ids),
        "format": collection.recipe.format,
        "posts": posts,
    }


# Posts are ranked with their children. What is no more in the application's database is not shown, though its URLs
# stay. The columns of `a` are named, because the row is wide and passes a sort.
IMAGES_OF_PROFILES = sa.text(f"""
    SELECT a.owner_id, a.source_type, a.source_id, a.media_id, a.taken_at, a.placeholder, a.legacy_url,
           r.paths, r.width, r.height, {CDN_PERCENTAGE} AS cdn_percentage,
           a.processing_status <> '{ImageStatus.COMPLETED}'
           AND EXISTS (SELECT FROM cdn_image_jobs WHERE asset_id = a.id AND {IS_OPEN}) AS queued
    FROM (
        SELECT id, owner_id, source_type, source_id, media_id, taken_at, created_at, placeholder, processing_status,
               CASE WHEN coalesce(url_expires_at > now(), true) THEN source_url END AS legacy_url,
               dense_rank() OVER (
                   PARTITION BY owner_id, source_type = '{_AVATAR}'
                   ORDER BY taken_at DESC NULLS LAST, source_id) AS latest
        FROM cdn_image_assets
        WHERE collection = :collection AND owner_id = ANY(:owner_ids) AND removed_at IS NULL
    ) AS a CROSS JOIN LATERAL (
        SELECT jsonb_object_agg(size_name, path) AS paths, max(width) AS width, max(height) AS height
        FROM cdn_image_renditions WHERE asset_id = a.id AND state = 'current' AND format = :format
    ) AS r
    WHERE a.latest <= :posts OR a.source_type = '{_AVATAR}'
    ORDER BY a.owner_id, a.taken_at DESC NULLS LAST, a.source_id, a.created_at, a.media_id
""")


@dataclass(slots=True)
class _Counts:
    total: int = 0
    published: int = 0
    queued: bool = False

    @property
    def document(self) -> Document:
        return {
            "queued": self.queued,
            "total_assets": self.total,
            "completed_assets": self.published,
            "completion_percentage": round(100 * self.published / self.total, 1),
        }


@dataclass(slots=True)
class _Post:
    own: sa.Row[Any] | None = None
    children: list[sa.Row[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Profile:
    """Writes a profile's document. `sizes` are the names of those that an available image has."""

    owner_id: str
    base_url: str
    sizes: tuple[str, ...]
    on_cdn: bool
    names_legacy_urls: bool

    def document(self, images: Sequence[sa.Row[Any]]) -> Document:
        """The document, of the profile's images in order."""
        counts, avatar, posts = _Counts(), None, dict[str, _Post]()
        for image in images:
            if image.source_type == _AVATAR:
                avatar = image
                continue
            post = posts.setdefault(image.source_id, _Post())
            if image.source_type == _CHILD:
                post.children.append(image)
            else:
                post.own = image
        return {
            "profile_id": self.owner_id,
            "avatar": self._avatar(avatar, counts),
            "posts": [self._post(post_id, post, counts) for post_id, post in posts.items()],
            "processing_status": counts.document,
        }

    def _avatar(self, image: sa.Row[Any] | None, counts: _Counts) -> Document:
        return {**self._urls(image), **self._about(image, counts)}

    def _post(self, post_id: str, post: _Post, counts: _Counts) -> Document:
        return {
            "postId": post_id,
            **self._picture(post.own, counts),
            "takenAt": _moment(post.own or post.children[0]),
            "children": [self._picture(child, counts) for child in post.children],
        }

    def _picture(self, image: sa.Row[Any] | None, counts: _Counts) -> Document:
        return {
            "mediaId": image.media_id if image is not None else None,
            "thumb": self._urls(image),
            **self._about(image, counts),
        }

    def _urls(self, image: sa.Row[Any] | None) -> Document:
        paths = (image.paths if image is not None and self.on_cdn else None) or {}
        return {size: self.base_url + paths[size] if size in paths else None for size in self.sizes}

    def _about(self, image: sa.Row[Any] | None, counts: _Counts) -> Document:
        if image is None:
            return {"available": False, "width": None, "height": None, "placeholder": None}
        published = image.paths is not None and all(size in image.paths for size in self.sizes)
        available = published and self.on_cdn
        counts.total += 1
        counts.published += published
        counts.queued = counts.queued or image.queued
        about = {
            "available": available,
            "width": image.width,
            "height": image.height,
            "placeholder": image.placeholder,
        }
        if self.names_legacy_urls and not available:
            about["legacyUrl"] = image.legacy_url
        return about


def _moment(image: sa.Row[Any]) -> str | None:
    return image.taken_at.isoformat() if image.taken_at else None
