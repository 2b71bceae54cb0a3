"""Both stores: a round trip with a throw-away object, and whether originals are as private as they should be.

The object lies under `.check/`, where no collection's keys begin and where clean-up takes what a killed check has left.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import httpx

from cdn_pipeline.engine.mirror import open_store
from cdn_pipeline.observe.doctor.deployment import Deployment
from cdn_pipeline.observe.doctor.findings import Finding, failed, ok, skipped, warning
from cdn_pipeline.store.keys import public_url
from cdn_pipeline.store.objects import CACHE_CONTROL, ObjectHead, ObjectMissing, ObjectStore, StoreUnavailable

_FOLDER = ".check"
_TIMEOUT = timedelta(seconds=5)
_CONTENT_TYPE = "image/webp"
_METADATA = {"purpose": "doctor"}
_KEYS = "R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY"

# By the error's code in S3's answer, which R2 and others share, or by what the client says.
_CURES = (
    ("NoSuchBucket", "there is no such bucket", "Create it, or correct R2_BUCKET_NAME or R2_ORIGINALS_BUCKET_NAME."),
    ("SignatureDoesNotMatch", "the secret is not that of the key", "Correct R2_SECRET_ACCESS_KEY."),
    ("InvalidAccessKeyId|Unauthorized", "the store does not know the key", f"Correct {_KEYS}."),
    ("RequestTimeTooSkewed", "this machine's clock is wrong", "Set it: `timedatectl set-ntp true`."),
    ("HTTP error", "the endpoint does not answer", "Correct R2_ENDPOINT_URL (or CF_ACCOUNT_ID), or let us out to it."),
)  # fmt: skip


def look_at_renditions(deployment: Deployment) -> Finding:
    """The public store."""
    return asyncio.run(_round_trip(deployment, deployment.settings.objects_url))


def look_at_originals(deployment: Deployment) -> Finding:
    """The private store."""
    return asyncio.run(_round_trip(deployment, deployment.settings.originals_url))


async def _round_trip(deployment: Deployment, url: str) -> Finding:
    """Puts, asks for, reads, lists and deletes an object, and tries to put another one in its place."""
    try:
        store = open_store(deployment.settings, url, timeout=_TIMEOUT)
        async with _thrown_away(store) as (key, data):
            head, is_intact = await store.head(key), await store.get(key) == data
            is_listed = key in [listed async for listed in store.list(_FOLDER)]
            is_write_once = not await _put(store, key, b"another")
        is_gone = await store.head(key) is None
    except StoreUnavailable as error:
        return await _why(deployment, url, error)
    lacks = [
        *([] if is_intact and is_listed else ["give back and list what was put"]),
        *([] if _has_headers(head) else ["keep Content-Type, Cache-Control and metadata"]),
        *([] if is_gone else ["delete"]),
    ]
    if lacks:
        return failed(f"{url} does not {' or '.join(lacks)} ({key})", "Use R2, another S3 or a folder that does.")
    if not is_write_once:
        words = f"{url} overwrites objects in spite of If-None-Match: * ({key})"
        return warning(words, "Harmless: a key names its object's hash. R2 and S3 would refuse; is it what you meant?")
    return ok(f"{url}: put once, head, get, list and delete of {key}")


@asynccontextmanager
async def _thrown_away(store: ObjectStore) -> AsyncIterator[tuple[str, bytes]]:
    """Key and bytes of an object that is in the store for as long as the `with` lasts."""
    key, data = f"{_FOLDER}/doctor-{uuid4().hex}", uuid4().bytes
    await _put(store, key, data)
    try:
        yield key, data
    finally:
        await store.delete(key)


async def _put(store: ObjectStore, key: str, data: bytes) -> bool:
    return await store.put_new(
        key, data, content_type=_CONTENT_TYPE, cache_control=CACHE_CONTROL, metadata=_METADATA
    )  # fmt: skip


def _has_headers(head: ObjectHead | None) -> bool:
    return head is not None and (head.content_type, head.cache_control, dict(head.metadata)) == (
        _CONTENT_TYPE,
        CACHE_CONTROL,
        _METADATA,
    )


async def _why(deployment: Deployment, url: str, error: StoreUnavailable) -> Finding:
    """The cause of a refusal: what the store says, or what it still allows."""
    said = str(error)
    for pattern, words, cure in _CURES:
        if re.search(pattern, said):
            return failed(f"{url}: {words}", cure)
    if "AccessDenied" in said and said.startswith("cannot put") and await _may_read(deployment, url):
        words = f"{url} may be read and not written"
        return failed(words, f"Set {_KEYS} of an API token with Object Read & Write for this bucket.")
    return failed(said, f"Is {url} what you meant, may {_KEYS} read and write it, is the folder writable?")


async def _may_read(deployment: Deployment, url: str) -> bool:
    store = open_store(deployment.settings, url, timeout=_TIMEOUT)
    try:
        await store.get(f"{_FOLDER}/absent")
    except ObjectMissing:
        return True
    except StoreUnavailable:
        return False
    return True


def look_at_privacy(deployment: Deployment) -> Finding:
    """Whether the CDN gives originals to strangers. Other ways to the bucket cannot be seen from here."""
    return asyncio.run(_privacy(deployment))


async def _privacy(deployment: Deployment) -> Finding:
    settings = deployment.settings
    store = open_store(settings, settings.originals_url, timeout=_TIMEOUT)
    async with _thrown_away(store) as (key, data):
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT.total_seconds(), trust_env=False) as stranger:
                answer = await stranger.get(public_url(settings.public_base_url, key))
        except (httpx.HTTPError, httpx.InvalidURL):
            return skipped("the CDN does not answer")
    unseen = "no custom domain, and its r2.dev address off: that cannot be seen from here"
    if answer.content == data:
        return failed(
            f"{settings.public_base_url} serves what is in {settings.originals_url}",
            f"Point the custom domain at the bucket of renditions, and leave that of originals private ({unseen}).",
        )
    return ok(f"{settings.public_base_url} does not serve originals. Their store wants {unseen}")
