"""The object store: write-once puts that can be verified, on R2 (or any S3) and on a local folder alike."""

import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import uuid4

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential, S3CredentialProvider

CACHE_CONTROL = "public, max-age=31536000, immutable"
_YEAR_DAYS = 365
REQUEST_TIMEOUT = timedelta(seconds=20)  # an image has 60 s; a stuck request and its last retry end within 40

_CONNECT_TIMEOUT = timedelta(seconds=5)
_RETRY: "RetryConfig" = {
    "max_retries": 4,
    # 0.25 + 0.5 + 1 + 2 s: R2 answers 429 to a second write of one key within a second
    "backoff": {"init_backoff": timedelta(milliseconds=250), "max_backoff": timedelta(seconds=2), "base": 2},
}
MANIFESTS = ".meta"  # what a folder store keeps beside its objects; no listing shows it
CHECKS = ".check"  # throw-away objects; `remove_temporary` takes what is left of them
_METADATA_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # they travel as header names, which come back in lower case
_METADATA_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")  # printable ASCII; HTTP strips blanks at the ends
_RESERVED_NAMES = frozenset({"content-type", "cache-control"})
_MAX_METADATA_BYTES = 2048  # S3's limit; R2 takes 8,192


class StoreUnavailable(Exception):
    """The store did not do what it was asked; the message names the key, the reason and what to look at."""


class ObjectMissing(Exception):
    """There is no such object, or what is there is not what it should be."""


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What a store says about an object without sending it.

    `etag` is unquoted: the MD5 of the bytes on R2, opaque on a folder.
    """

    size: int
    etag: str | None
    content_type: str | None = None
    cache_control: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListedObject:
    """What a listing says of an object; `last_modified` by the store's clock."""

    key: str
    size: int
    last_modified: datetime


def cache_control(browser_days: int) -> str:
    """The header of renditions that browsers may keep for so many days, and the CDN for a year.

    Nobody can purge a browser: what was erased lives on there for that long.
    """
    if browser_days >= _YEAR_DAYS:
        return CACHE_CONTROL
    return f"public, max-age={browser_days * 86400}, s-maxage=31536000, immutable"


def is_cache_control(header: str | None) -> bool:
    """Whether `cache_control` makes such a header, for whatever number of days."""
    match = re.match(r"public, max-age=(\d+),", header or "")
    return match is not None and header == cache_control(int(match[1]) // 86400)


class ObjectStore:
    """Objects by key. Every method raises `StoreUnavailable` when the store cannot be reached, refuses or times out."""

    def __init__(self, store: S3Store | LocalStore | MemoryStore, url: str) -> None:
        self._store = store
        self.url = url

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        endpoint_url: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        timeout: timedelta = REQUEST_TIMEOUT,
    ) -> "ObjectStore":
        """The store at `file:///folder` (created if missing) or `s3://bucket[/prefix]`.

        Args:
            url: where the objects live.
            endpoint_url: of the S3 API, path-style; plain HTTP is allowed, for servers on this machine.
            access_key_id: with `secret_access_key`; without both, the environment's AWS credentials serve.
            secret_access_key: with `access_key_id`.
            timeout: of one request to S3, and of the time within which it is retried.

        Raises:
            ValueError: the URL is neither of the two, or one credential of the two is missing.
            StoreUnavailable: the folder cannot be created.
        """
        parts = urlsplit(url)
        if parts.scheme == "file" and not parts.netloc and parts.path:
            from cdn_pipeline.store.folder import FolderStore  # which is an ObjectStore

            return FolderStore(Path(url2pathname(parts.path)), url)
        if parts.scheme != "s3" or not parts.netloc:
            raise ValueError(f"an object store is file:///folder or s3://bucket[/prefix], not {url!r}")
        if (access_key_id is None) != (secret_access_key is None):
            raise ValueError(f"{url} needs both an access key id and a secret access key, or neither")
        prefix = parts.path.strip("/") or None
        return cls(_s3_store(parts.netloc, prefix, endpoint_url, access_key_id, secret_access_key, timeout), url)

    async def put_new(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str,
        cache_control: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect_present: bool = False,
    ) -> bool:
        """Stores an object unless there is one under its key.

        Args:
            key: from `cdn_pipeline.store.keys`.
            data: the whole object.
            content_type: header of the delivered object.
            cache_control: header of the delivered object, such as `CACHE_CONTROL`.
            metadata: describes the object for whoever finds only the store: lower-case names, printable ASCII values.
            expect_present: look before writing. On R2 a HEAD costs a twelfth of a refused PUT.

        Returns:
            Whether it was written; False means that the key was taken, and its object is unchanged.

        Raises:
            ValueError: the metadata does not fit into headers.
        """
        return await self._put_new(
            key, data, attributes_of(content_type, cache_control, metadata or {}), expect_present=expect_present
        )

    async def put_verified(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str,
        cache_control: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expect_present: bool = False,
        renew: bool = False,
    ) -> None:
        """Makes sure that the object is in the store, whole; putting it again changes nothing.

        For keys that name the hash of their object: whatever else lies there is damaged, and is replaced. Arguments as
        for `put_new`; the metadata is that of the first put, or with `renew` that of this one.

        Raises:
            ValueError: the metadata does not fit into headers.
            StoreUnavailable: also when the store says that it stored the object, and did not.
        """
        attributes = attributes_of(content_type, cache_control, metadata or {})
        for _ in range(2):
            if await self._put_and_compare(key, data, attributes, expect_present=expect_present, renew=renew):
                return
            await self.delete(key)  # it would refuse every later put
        raise StoreUnavailable(f"{self.url} does not keep {key} as it was put: check the store")

    async def head(self, key: str) -> ObjectHead | None:
        """What the store says about an object, or None if there is none."""
        with self._translated("head", key):
            try:
                result = await self._store.get_async(key, options={"head": True})
                attributes = await self._described(key, result.attributes)
            except FileNotFoundError:
                return None
        etag = result.meta["e_tag"]
        content_type, cache_control = attributes.pop("Content-Type", None), attributes.pop("Cache-Control", None)
        return ObjectHead(
            result.meta["size"], etag.strip('"') if etag else None, content_type, cache_control, attributes
        )

    async def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            ObjectMissing: there is none.
        """
        with self._translated("get", key):
            try:
                result = await self._store.get_async(key)
                return (await result.bytes_async()).to_bytes()
            except FileNotFoundError as error:
                self._require_bucket("get", key, error)
                raise ObjectMissing(f"{key} is not in {self.url}") from error

    async def stored(self, key: str, data: bytes) -> bool:
        """Whether the store holds exactly these bytes under this key: asked before anything becomes visible.

        A HEAD answers where the ETag is the MD5 (R2, S3); otherwise the object is read back and compared.
        """
        head = await self.head(key)
        if head is None or head.size != len(data):
            return False
        if head.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        try:
            return await self.get(key) == data
        except ObjectMissing:
            return False

    async def delete(self, key: str) -> None:
        """Removes an object and all that describes it; nothing happens if there is none."""
        with self._translated("delete", key):
            try:
                await self._remove(key)
            except FileNotFoundError as error:
                self._require_bucket("delete", key, error)

    async def list(self, prefix: str = "") -> AsyncIterator[str]:
        """The keys below a prefix of whole path segments (`th/ig` has no `th/igloo`), in no particular order.

        But those of one folder, and of the folders in it, come one after the other.
        """
        async for page in self.pages(prefix):
            for listed in page:
                yield listed.key

    async def pages(self, prefix: str = "") -> AsyncIterator[Sequence[ListedObject]]:
        """The objects below a prefix, as `list` has them, in pages of at most 1,000: one request each on S3."""
        with self._translated("list", prefix):
            async for chunk in self._store.list(prefix or None, chunk_size=1000):
                yield [
                    ListedObject(meta["path"], meta["size"], meta["last_modified"])
                    for meta in chunk
                    if not meta["path"].startswith(f"{MANIFESTS}/")
                ]

    async def remove_temporary(self, before: datetime, *, dry_run: bool = False) -> Sequence[ListedObject]:
        """Removes what killed processes have left here, last changed before then; returns it."""
        pages = [page async for page in self.pages(CHECKS)]
        left = [listed for page in pages for listed in page if listed.last_modified < before]
        for listed in [] if dry_run else left:
            await self.delete(listed.key)
        return left

    async def check(self) -> None:
        """Puts, verifies, reads and deletes a small object: proves address, credentials and permissions.

        Raises:
            StoreUnavailable: one of them fails; the message says what to do.
        """
        key, data, metadata = f"{CHECKS}/{uuid4().hex}", uuid4().bytes, {"purpose": "check"}
        await self.put_new(key, data, content_type="application/octet-stream", metadata=metadata)
        head = await self.head(key)
        intact = head is not None and head.metadata == metadata and await self.stored(key, data)
        await self.delete(key)
        if not intact:
            raise StoreUnavailable(f"{self.url} takes objects but does not give them back as they were: use another")

    async def _put_new(self, key: str, data: bytes, attributes: "Attributes", *, expect_present: bool) -> bool:
        if expect_present and await self.head(key) is not None:
            return False
        with self._translated("put", key):
            try:
                await self._create(key, data, attributes)
            except AlreadyExistsError:
                return False
            except FileNotFoundError as error:  # a put has nothing to find but its bucket
                raise self._unavailable("put", key, error) from error
        return True

    async def _put_and_compare(
        self, key: str, data: bytes, attributes: "Attributes", *, expect_present: bool, renew: bool
    ) -> bool:
        is_new = await self._put_new(key, data, attributes, expect_present=expect_present)
        if renew and not is_new:
            with self._translated("put", key):
                await self._store.put_async(key, data, attributes=attributes, mode="overwrite")
        return await self.stored(key, data)

    async def _create(self, key: str, data: bytes, attributes: "Attributes") -> None:
        await self._store.put_async(key, data, attributes=attributes, mode="create")

    async def _described(self, key: str, attributes: "Attributes") -> "Attributes":
        return attributes

    async def _remove(self, key: str) -> None:
        await self._store.delete_async(key)

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._unavailable(verb, key, error) from error

    def _require_bucket(self, verb: str, key: str, error: FileNotFoundError) -> None:
        if "NoSuchBucket" in str(error):  # nothing is missing or erased because we look in the wrong place
            raise self._unavailable(verb, key, error) from error

    def _unavailable(self, verb: str, key: str, error: Exception) -> StoreUnavailable:
        reason = " ".join(str(error).partition("\n\nDebug source")[0].split())
        return StoreUnavailable(f"cannot {verb} {key} in {self.url}: {self._advice(reason)}. {reason[:400]}")

    def _advice(self, reason: str) -> str:
        status = re.search(r"status code: (\d{3})", reason)
        match status and int(status[1]):
            case 404:
                return (
                    "create the bucket or correct its name (R2_BUCKET_NAME, R2_ORIGINALS_BUCKET_NAME or the s3:// URL)"
                )
            case 400 | 401 | 403:
                return "check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, and that they may read and write this bucket"
            case 429 | 500 | 502 | 503 | 504:
                return "wait: the store is overloaded or out of order"
            case _:
                return "check that R2_ENDPOINT_URL (or CF_ACCOUNT_ID) is right and reachable from here"


def _s3_store(
    bucket: str,
    prefix: str | None,
    endpoint_url: str | None,
    access_key_id: str | None,
    secret_access_key: str | None,
    timeout: timedelta,
) -> S3Store:
    client: ClientConfig = {"connect_timeout": min(_CONNECT_TIMEOUT, timeout), "timeout": timeout}
    config: S3Config = {"region": "auto", "virtual_hosted_style_request": False, "disable_bulk_delete": True}
    if endpoint_url:
        # AWS_ENDPOINT_URL_S3 of the environment would win over the plain `endpoint`
        config["aws_endpoint_url_s3"] = endpoint_url
        client["allow_http"] = endpoint_url.startswith("http://")
    return S3Store(
        bucket,
        prefix=prefix,
        config=config,
        client_options=client,
        retry_config={**_RETRY, "retry_timeout": timeout},
        credential_provider=_credentials(access_key_id, secret_access_key),
    )


def _credentials(access_key_id: str | None, secret_access_key: str | None) -> "S3CredentialProvider | None":
    if access_key_id is None or secret_access_key is None:
        return None
    # as plain options, a stray AWS_SESSION_TOKEN of the environment would be signed with them
    credential: S3Credential = {
        "access_key_id": access_key_id,
        "secret_access_key": secret_access_key,
        "token": None,
        "expires_at": None,
    }
    return lambda: credential


def attributes_of(content_type: str, cache_control: str | None, metadata: Mapping[str, str]) -> "Attributes":
    """Headers and metadata of an object as the store takes them.

    Raises:
        ValueError: the metadata does not fit into headers.
    """
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name) or name in _RESERVED_NAMES:
            raise ValueError(f"not a metadata name ({_METADATA_NAME.pattern}): {name!r}")
        if not _METADATA_VALUE.fullmatch(value):
            raise ValueError(f"metadata {name} must be printable ASCII, without blanks at its ends: {value[:100]!r}")
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > _MAX_METADATA_BYTES:
        raise ValueError(f"metadata has at most {_MAX_METADATA_BYTES} bytes, not {size}")
    headers = {"Content-Type": content_type} | ({"Cache-Control": cache_control} if cache_control else {})
    return headers | dict(metadata)
