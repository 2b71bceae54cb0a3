"""A profile's pictures and their stories, one image's whole story, and the search that leads there."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from blurhash_rs import BlurhashDecodeError, blurhash_decode
from fastapi import APIRouter, HTTPException, Response

from cdn_pipeline.api.pages.visits import PageRoute, Visit, Visited
from cdn_pipeline.api.refresh import LastRefresh, get_refresh
from cdn_pipeline.collections import Collection
from cdn_pipeline.observe.lookup import Found, find_images
from cdn_pipeline.observe.snapshot import snapshot
from cdn_pipeline.observe.story import ImageStory, JobStory, RenditionStory, UrlStory, tell_stories
from cdn_pipeline.observe.why import QueueState, Why, why

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_MOST_SHOWN = 200  # pictures on one page: twelve posts with ten children each, and the avatar
_MOST_ASKED = 2000  # characters: a source URL has some hundreds

_GOOD = frozenset({QueueState.COMPLETED})
_ON_THEIR_WAY = frozenset({QueueState.DUE, QueueState.IN_HAND})
_BAD = frozenset({QueueState.FAILED, QueueState.ABANDONED})

_RETRIED = frozenset({QueueState.FAILED, QueueState.RETRY_LATER, QueueState.WAITING, QueueState.BEHIND_HOST})


@dataclass(frozen=True, slots=True)
class Shown:
    """An image as pages show it."""

    story: ImageStory
    why: Why
    picture: RenditionStory | None  # the largest that is visible, in the collection's own format
    placeholder: str | None  # a `data:` URL

    @property
    def level(self) -> str:
        """Good, pending, warning or error."""
        state = self.why.state
        return (
            "good"
            if state in _GOOD
            else "pending"
            if state in _ON_THEIR_WAY
            else "error"
            if state in _BAD
            else "warning"
        )

    @property
    def live_source(self) -> str | None:
        """The source URL, if a browser may open it and it has not expired."""
        current = self.story.current
        is_alive = current.expires_at is None or current.expires_at > self.story.now
        return current.url if is_alive and current.url.startswith(("http://", "https://")) else None

    @property
    def retryable(self) -> JobStory | None:
        """The job that an operator's retry names; None where there is nothing to retry."""
        newest = self.story.jobs[0] if self.story.jobs else None
        return newest if self.why.state in _RETRIED else None

    @property
    def earlier_urls(self) -> Sequence[UrlStory | str]:
        """Other URLs it can or could be had at."""
        return (*self.story.fallbacks, *self.story.earlier_urls)


@router.get("/profiles/{owner_id}")
def get_profile(visit: Visited, owner_id: str) -> Response:
    """A profile's pictures, before and after, each with its story in a sentence."""
    visit.require_reader()
    _, stories = _find(visit, owner_id)
    stories = [story for story in stories if story.owner_id == owner_id]
    if not stories:
        raise HTTPException(404, "No picture of this profile is known: it is new, removed or erased.")
    return visit.page(
        "profile.html",
        owner_id=owner_id,
        now=stories[0].now,
        shard=stories[0].shard,
        images=[_shown(visit, story) for story in stories[:_MOST_SHOWN]],
        more=max(len(stories) - _MOST_SHOWN, 0),
        published=sum(bool(story.visible) for story in stories),
        total=len(stories),
        refresh=_last_refresh(visit, owner_id),
        can_refresh=_as_uuid(owner_id) is not None,
    )


@router.get("/images/{image_id}")
def get_image(visit: Visited, image_id: UUID) -> Response:
    """One image's whole story."""
    visit.require_reader()
    stories = _tell(visit, [image_id])
    if not stories:
        raise HTTPException(404, "There is no such image, or it was erased.")
    return visit.page("image.html", now=stories[0].now, image=_shown(visit, stories[0]))


@router.get("/search")
def get_search(visit: Visited, q: str = "") -> Response:
    """Leads to the image or the profile that is meant, or lists what it may be."""
    visit.require_reader()
    subject = q.strip()[:_MOST_ASKED]
    found, stories = _find(visit, subject) if subject else (Found((), ()), [])
    if len(stories) == 1:
        return visit.go(f"/images/{stories[0].image_id}")
    if stories and all(story.owner_id == subject for story in stories):
        return visit.go(f"/profiles/{subject}")
    return visit.page(
        "search.html",
        200 if stories or not subject else 404,
        subject=subject,
        readings=found.readings,
        images=[_shown(visit, story) for story in stories[:_MOST_SHOWN]],
        more=max(len(stories) - _MOST_SHOWN, 0),
    )


def _find(visit: Visit, subject: str) -> tuple[Found, list[ImageStory]]:
    serving = visit.serving
    with snapshot(serving.catalog) as now:
        found = find_images(now.connection, serving.collection, subject)
        return found, tell_stories(now, serving.collection, found.image_ids)


def _tell(visit: Visit, image_ids: Sequence[UUID]) -> list[ImageStory]:
    with snapshot(visit.serving.catalog) as now:
        return tell_stories(now, visit.serving.collection, image_ids)


def _shown(visit: Visit, story: ImageStory) -> Shown:
    collection = visit.serving.collection
    reason = why(collection, story, has_provider=visit.serving.settings.has_provider)
    placeholder = _placeholder_url(story.placeholder) if story.placeholder else None
    return Shown(story, reason, _picture(collection, story), placeholder)


def _picture(collection: Collection, story: ImageStory) -> RenditionStory | None:
    pictures = [rendition for rendition in story.visible if rendition.format == collection.recipe.format]
    return max(pictures, key=lambda rendition: rendition.width, default=None)


@lru_cache(maxsize=1024)
def _placeholder_url(blurhash: str) -> str | None:
    """A blurred picture of 16 pixels as a `data:` URL; the browser stretches it. None: it is no BlurHash."""
    try:
        picture = blurhash_decode(blurhash, 16, 16)
    except BlurhashDecodeError:
        return None
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _last_refresh(visit: Visit, owner_id: str) -> LastRefresh | None:
    profile_id = _as_uuid(owner_id)
    if profile_id is None:
        return None
    try:
        return get_refresh(visit.serving, profile_id)
    except HTTPException:  # nobody has asked for one
        return None


def _as_uuid(owner_id: str) -> UUID | None:
    try:
        return UUID(owner_id)
    except ValueError:
        return None
