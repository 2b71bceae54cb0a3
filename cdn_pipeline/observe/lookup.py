"""Finds the images that an operator means by an id, a URL, a path, a key or a hash."""

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.collections import Collection
from cdn_pipeline.sources.instagram import media_key, parse, unescape

MOST_IMAGES = 1000  # an owner has some dozens; what is beyond is no story any more

_SHA256 = re.compile(r"(?:.*/)?([0-9a-fA-F]{64})")  # bare, or at the end of an original's key


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to understand what was asked for: in words, and as a condition on images."""

    meaning: str
    condition: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """The images of the first reading that finds any, and that reading; or none, and all that were tried."""

    image_ids: tuple[uuid.UUID, ...]
    readings: tuple[Reading, ...]


def find_images(connection: sa.Connection, collection: Collection, subject: str) -> Found:
    """The images that `subject` means, at most `MOST_IMAGES`, newest first.

    It may be the id of an image, of an owner, of a source row (a post), of a job or of a medium; a public URL or path,
    on any host; an object's key; the SHA-256 of an original; or a source URL, whenever it was signed.
    """
    readings = tuple(_readings(collection, _printable(subject)))
    for reading in readings:
        ids = _find(connection, collection, reading)
        if ids:
            return Found(tuple(ids), (reading,))
    return Found((), readings)


def _printable(subject: str) -> str:
    """The subject without what a payload or a shell wraps it in, and as Postgres takes it: without NUL or half a
    surrogate pair, as bytes of a command line may leave."""
    return unescape(subject).encode("utf-8", "replace").decode().replace("\x00", "")


def _find(connection: sa.Connection, collection: Collection, reading: Reading) -> Sequence[uuid.UUID]:
    query = sa.text(f"""
        SELECT a.id FROM cdn_image_assets a WHERE a.collection = :collection AND ({reading.condition})
        ORDER BY a.taken_at DESC NULLS FIRST, a.source_id, a.id LIMIT {MOST_IMAGES}
    """)
    return connection.scalars(query, {"collection": collection.name, **reading.values}).all()


def _readings(collection: Collection, subject: str) -> Iterator[Reading]:
    if path := _public_path(collection, subject):
        yield from _as_path(collection, path)
    elif subject.lower().startswith(("http://", "https://")):
        yield from _as_source_url(subject)
    else:
        yield from _as_id(collection, subject)


def _public_path(collection: Collection, subject: str) -> str | None:
    """The CDN path in a public URL, a path or a key, whatever stands before it; None if there is none."""
    prefix = f"/{collection.key_prefix}/"
    before, found, rest = f"/{subject}".partition(prefix)
    is_ours = found and "?" not in before
    return prefix + re.split("[?#]", rest)[0] if is_ours else None


def _as_path(collection: Collection, path: str) -> Iterator[Reading]:
    yield Reading(
        "the path of a rendition",
        "a.id IN (SELECT asset_id FROM cdn_image_renditions WHERE path = :path)",
        {"path": path},
    )
    # Clean-up may have taken the rendition, and what is left of a path still names its owner and its image.
    owner_id, _, rest = path.removeprefix(f"/{collection.key_prefix}/").partition("/")
    media_id = rest.partition("/")[0]
    if media_id:
        yield Reading(
            f"a path of the medium {media_id} of owner {owner_id}",
            "a.owner_id = :owner_id AND a.media_id = :media_id",
            {"owner_id": owner_id, "media_id": media_id},
        )
    else:
        yield _owner(owner_id)


def _as_source_url(subject: str) -> Iterator[Reading]:
    try:
        source_url = parse(subject)
    except ValueError as error:
        yield Reading(f"a source URL that can never be requested ({error})", "false", {})
        return
    yield Reading(
        f"a source URL of the picture {source_url.identity}",
        "a.identity = :identity OR a.original_identity = :identity",
        {"identity": source_url.identity},
    )
    yield Reading(
        "a source URL among all that images and jobs remember, letter by letter",
        """a.source_url = :url OR a.fallback_urls @> jsonb_build_array(jsonb_build_object('url', CAST(:url AS text)))
           OR a.id IN (SELECT asset_id FROM cdn_image_jobs WHERE source_url = :url)""",
        {"url": source_url.url},
    )


def _as_id(collection: Collection, subject: str) -> Iterator[Reading]:
    if sha256 := _SHA256.fullmatch(subject):
        yield Reading("the SHA-256 of an original", "a.original_sha256 = :sha256", {"sha256": sha256[1].lower()})
    if number := _as_uuid(subject):
        subject = str(number)
        yield Reading("the id of an image", "a.id = :id", {"id": number})
    yield _owner(subject)
    yield Reading(
        "the id of a source row (a post)",
        "a.source_type = ANY(:source_types) AND a.source_id = :source_id",  # the unique index begins so
        {"source_types": list(collection.priorities), "source_id": subject},
    )
    if number:
        yield Reading(
            "the id of a job", "a.id IN (SELECT asset_id FROM cdn_image_jobs WHERE id = :job_id)", {"job_id": number}
        )
    yield Reading("the id of a medium", "a.media_id = :media_id", {"media_id": media_key(subject)})


def _owner(owner_id: str) -> Reading:
    return Reading("the id of an owner (a profile)", "a.owner_id = :owner_id", {"owner_id": owner_id})


def _as_uuid(subject: str) -> uuid.UUID | None:
    """The UUID, if it is written as one: 32 digits alone are as likely the id of a medium."""
    try:
        number = uuid.UUID(subject)
    except ValueError:
        return None
    return number if str(number) == subject.lower() else None
