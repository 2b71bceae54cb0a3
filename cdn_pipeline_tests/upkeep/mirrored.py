"""A catalog of published images whose objects are really in its stores."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cdn_pipeline.queue.due import DueJob
from cdn_pipeline.queue.outcomes import NewRendition, Outcome, StoredOriginal, Verdict
from cdn_pipeline.queue.settlement import settle
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.store.folder import FolderStore
from cdn_pipeline.store.keys import original_key, path_of, rendition_key
from cdn_pipeline.store.objects import CACHE_CONTROL
from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline_tests.queue.catalogs import RUN, both_sizes, outcome, reference, see, source_url, take


def folder_stores(folder: Path) -> Stores:
    """Both stores, in folders named as the settings of the tests have them."""
    return Stores(*(FolderStore(folder / name, (folder / name).as_uri()) for name in ("objects", "originals")))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def original_of(content: str) -> bytes:
    return f"original {content}".encode()


def renditions_of(media_id: str, content: str) -> list[tuple[NewRendition, bytes]]:
    """Both sizes, with their bytes, which their hash and path follow from."""
    made = []
    for rendition in both_sizes(content, original=sha256(original_of(content))):
        data = f"{rendition.size_name} {content}".encode()
        key = rendition_key("th/ig", "owner", media_id, rendition.size_name, sha256(data), rendition.format)
        made.append((replace(rendition, path=path_of(key), content_hash=sha256(data), file_size=len(data)), data))
    return made


def put(stores: Stores, media_id: str, content: str) -> None:
    """What an attempt does before its outcome is settled."""

    async def put_all() -> None:
        data = original_of(content)
        await stores.originals.put_verified(original_key(sha256(data)), data, content_type="image/jpeg")
        for rendition, data in renditions_of(media_id, content):
            key = rendition.path.removeprefix("/")
            await stores.renditions.put_verified(key, data, content_type="image/webp", cache_control=CACHE_CONTROL)

    asyncio.run(put_all())


def published(job: DueJob, content: str) -> Outcome:
    """The outcome of an attempt that has put this content."""
    data = original_of(content)
    original = StoredOriginal(sha256(data), job.identity, job.ranks[0], len(data), "jpeg", None, None, None)
    return outcome(
        job,
        Verdict.PUBLISHED,
        Stage.PUBLISH,
        original=original,
        renditions=tuple(rendition for rendition, _ in renditions_of(job.media_id, content)),
        claimed_at=job.claimed_at,
    )


def mirror(connection: sa.Connection, stores: Stores, *contents: str, image: str = "1", **more: Any) -> None:
    """Publishes these pictures of an image one after the other, in a session whose every statement commits."""
    for number, content in enumerate(contents):
        age = timedelta(hours=len(contents) - number)  # each is seen later than the one before
        see(connection, reference(source_url(picture=content), image=image, age=age, **more))
        for job in take(connection):
            put(stores, job.media_id, content)
            settle(connection, RUN, [published(job, content)])


def objects(folder: Path) -> Sequence[str]:
    """Names of all files in the stores, manifests left out."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and ".meta" not in file.parts)
