"""Originals: the downloaded bytes, private and content-addressed, so a picture is stored once and never changes."""

import hashlib
from collections.abc import Mapping

from cdn_pipeline.store.keys import original_key
from cdn_pipeline.store.objects import ObjectMissing, ObjectStore


class OriginalStore:
    """Originals by the SHA-256 of their bytes. Every method raises `StoreUnavailable` when the store fails."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def put(
        self, data: bytes, sha256: str, *, content_type: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Makes sure that the original is in the store, whole; putting it again changes nothing.

        The metadata is that of the first put: a picture that two images share keeps the first one's.

        Raises:
            ValueError: `sha256` is not the hash of `data`, or the metadata does not fit into headers.
            StoreUnavailable: also when the store says that it stored the original, and did not.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"these {len(data)} bytes do not have the SHA-256 {sha256}")
        await self._objects.put_verified(original_key(sha256), data, content_type=content_type, metadata=metadata)

    async def get(self, sha256: str) -> bytes:
        """The original, verified.

        Raises:
            ObjectMissing: it is not there, or its bytes no longer have this hash.
        """
        key = original_key(sha256)
        data = await self._objects.get(key)
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise ObjectMissing(f"{key} in {self._objects.url} is damaged: {len(data)} bytes with SHA-256 {actual}")
        return data

    async def check(self) -> None:
        """As `ObjectStore.check`."""
        await self._objects.check()

    async def delete(self, sha256: str) -> None:
        """Removes the original; nothing happens if there is none."""
        await self._objects.delete(original_key(sha256))
