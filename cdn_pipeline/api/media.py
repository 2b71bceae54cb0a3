"""`GET …/media`: a profile's pictures, and those of many profiles at once."""

import hashlib
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, HTTPException, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from cdn_pipeline.api.problems import documented
from cdn_pipeline.api.profile_media import Document, profiles_media
from cdn_pipeline.api.serving import Served
from cdn_pipeline.sources.app_database import LATEST_POSTS

router = APIRouter(prefix="/api/v1/creators/ig", tags=["media"])

MAX_PROFILES = 100  # 5 KB of query string

# A minute is what a new picture may be late by; while some are on their way, less. Together with what may be served
# stale it is less than five minutes: by then a CDN that was switched off must be out of caches.
_SETTLED = "public, max-age=60, stale-while-revalidate=180"
_ON_ITS_WAY = "public, max-age=5"

_EXAMPLE_URL = "https://cdn.example.com/th/ig/0b3c…/avatar/256/0123456789abcdef.webp"


class Urls(BaseModel):
    """Immutable URLs by size: fits inside so many pixels, never enlarged.

    Null until the picture is published, and while the CDN is off for this profile.
    """

    small: str | None = Field(alias="256", description="Fits inside 256 × 256.", examples=[_EXAMPLE_URL])
    large: str | None = Field(
        alias="512", description="Fits inside 512 × 512.", examples=[_EXAMPLE_URL.replace("256", "512")]
    )


class Picture(BaseModel):
    """What is known of a picture besides its URLs."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    available: bool = Field(description="Whether every size is published, and its URL stands here.")
    width: int | None = Field(description="Pixels of the largest size; all sizes have its aspect ratio.")
    height: int | None = Field(description="Pixels of the largest size.")
    placeholder: str | None = Field(
        description="A BlurHash to show until the picture has loaded.", examples=["LEHV6nWB2yk8pyo0adR*.7kCMdnj"]
    )
    legacy_url: str | None = Field(
        default=None,
        alias="legacyUrl",
        description="Where the picture is today, signed and soon expired, and null once it has expired. Only of a "
        "picture that is not available; only with MEDIA_LEGACY_FALLBACK, or while the CDN is off for this profile.",
    )


class Avatar(Urls, Picture):
    """A profile's own picture."""


class Thumbnail(Picture):
    """A picture of a post: its own, or a child of its carousel."""

    media_id: str | None = Field(
        alias="mediaId", description="Instagram's id; null for a post without a picture of its own."
    )
    thumb: Urls


class Post(Thumbnail):
    """A post with its picture and, apart, the others of its carousel."""

    post_id: str = Field(alias="postId", description="The id of the post's row in the application's database.")
    taken_at: datetime | None = Field(alias="takenAt", description="When it was posted.")
    children: list[Thumbnail] = Field(description="The other pictures of its carousel.")


class ProfileProcessing(BaseModel):
    """How many of the pictures shown are published."""

    queued: bool = Field(description="Whether some picture is still on its way.")
    total_assets: int = Field(description="Pictures in this answer, published or not.")
    completed_assets: int = Field(description="Those of which every size is published.")
    completion_percentage: float = Field(description="Their share, in percent.", examples=[100.0])


class ProfileMedia(BaseModel):
    """A profile's pictures."""

    profile_id: UUID = Field(description="The profile's id in the application's database.")
    avatar: Avatar
    posts: list[Post] = Field(description="The latest first.")
    processing_status: ProfileProcessing


class ManyProfiles(BaseModel):
    """The pictures of several profiles."""

    profiles: list[ProfileMedia]
    unknown: list[UUID] = Field(description="Profiles of which no picture is known.")


Posts = Annotated[int, Query(ge=1, le=100, description="How many posts at most, the latest first.")]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", description="The ETag of what the caller has.")]

_HEADERS: dict[str, Any] = {
    name: {"description": words, "required": True, "schema": {"type": "string"}}
    for name, words in (
        ("ETag", "Of this answer."),
        ("Cache-Control", "A minute, less while pictures are on their way."),
    )
}
_CACHED: dict[int | str, dict[str, Any]] = {
    200: {"headers": _HEADERS},
    304: {"description": "What the caller has is current.", "headers": _HEADERS},
}


@router.get(
    "/{profile_id}/media",
    response_model=ProfileMedia,
    responses=_CACHED | documented(404, 422, 503),
    summary="A profile's pictures",
)
def get_profile_media(
    serving: Served,
    profile_id: Annotated[UUID, Path(description="The profile's id in the application's database.")],
    posts: Posts = LATEST_POSTS,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Avatar and latest posts. A URL stands here only after its object was stored and verified, so none is broken."""
    document = profiles_media(serving, [str(profile_id)], posts).get(str(profile_id))
    if document is None:
        raise HTTPException(
            404, "No picture of this profile is known: it is new, or not in the application's database."
        )
    return _answer(document, is_settled=not _is_queued(document), if_none_match=if_none_match)


@router.get(
    "/media",
    response_model=ManyProfiles,
    responses=_CACHED | documented(422, 503),
    summary="The pictures of many profiles",
)
def get_profiles_media(
    serving: Served,
    profile_id: Annotated[list[UUID], Query(min_length=1, max_length=MAX_PROFILES, description="May be repeated.")],
    posts: Posts = LATEST_POSTS,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """As for one profile, in the order in which they were asked for."""
    ids = list(dict.fromkeys(map(str, profile_id)))
    found = profiles_media(serving, ids, posts)
    document = {
        "profiles": [found[each] for each in ids if each in found],
        "unknown": [each for each in ids if each not in found],
    }
    return _answer(document, is_settled=not any(map(_is_queued, found.values())), if_none_match=if_none_match)


def _is_queued(document: Document) -> bool:
    return bool(document["processing_status"]["queued"])


def _answer(document: Document, *, is_settled: bool, if_none_match: str | None) -> Response:
    body = to_json(document)
    headers = {
        "ETag": f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"',
        "Cache-Control": _SETTLED if is_settled else _ON_ITS_WAY,
    }
    if _matches(headers["ETag"], if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _matches(etag: str, if_none_match: str | None) -> bool:
    """Weakly, as RFC 9110 asks for GET: proxies that compress make tags weak."""
    tags = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    return etag in tags or "*" in tags
