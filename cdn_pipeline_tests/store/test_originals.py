import asyncio
import hashlib

import pytest
from aiohttp import web

from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectMissing, ObjectStore, StoreUnavailable
from cdn_pipeline.store.originals import OriginalStore
from cdn_pipeline_tests.store.test_objects import serving, store_at

pytestmark = pytest.mark.anyio

DATA = b"\xff\xd8 a picture \xff\xd9" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


async def test_an_original_comes_back_by_its_hash(object_store: ObjectStore) -> None:
    originals = OriginalStore(object_store)
    await originals.put(DATA, SHA256, content_type="image/jpeg", metadata={"owner": "owner"})
    assert await originals.get(SHA256) == DATA
    head = await object_store.head(original_key(SHA256))
    assert head is not None
    assert (head.content_type, head.metadata) == ("image/jpeg", {"owner": "owner"})


async def test_putting_an_original_again_changes_nothing(object_store: ObjectStore) -> None:
    originals = OriginalStore(object_store)
    await asyncio.gather(*[originals.put(DATA, SHA256, content_type="image/jpeg") for _ in range(4)])
    assert [key async for key in object_store.list()] == [original_key(SHA256)]
    assert await originals.get(SHA256) == DATA


async def test_an_original_that_is_not_there_is_missing(object_store: ObjectStore) -> None:
    originals = OriginalStore(object_store)
    await originals.put(DATA, SHA256, content_type="image/jpeg")
    await originals.delete(SHA256)
    with pytest.raises(ObjectMissing):
        await originals.get(SHA256)


async def test_bytes_with_another_hash_are_refused(object_store: ObjectStore) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        await OriginalStore(object_store).put(DATA + b"x", SHA256, content_type="image/jpeg")


async def test_a_damaged_original_is_missing_until_it_is_put_again(object_store: ObjectStore) -> None:
    originals = OriginalStore(object_store)
    await object_store.put_new(original_key(SHA256), DATA[:-1], content_type="image/jpeg")
    with pytest.raises(ObjectMissing, match="damaged"):
        await originals.get(SHA256)
    await originals.put(DATA, SHA256, content_type="image/jpeg")
    assert await originals.get(SHA256) == DATA


async def test_a_store_that_only_says_that_it_stored_is_not_believed() -> None:
    async def lie(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=404 if request.method == "HEAD" else 200, headers={"ETag": '"0"'})

    async with serving(lie) as endpoint_url:
        with pytest.raises(StoreUnavailable, match="does not keep"):
            await OriginalStore(store_at(endpoint_url)).put(DATA, SHA256, content_type="image/jpeg")
