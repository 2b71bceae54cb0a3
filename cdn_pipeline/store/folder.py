"""A store in a folder, for a laptop and for tests: the same promises as R2, kept with files."""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from cdn_pipeline.store.objects import MANIFESTS, ListedObject, ObjectMissing, ObjectStore, StoreUnavailable

if TYPE_CHECKING:
    from obstore import Attributes

_THREADS = 4
_TEMPORARY = re.compile(r".+#\d+")

_T = TypeVar("_T")


class FolderStore(ObjectStore):
    """What S3 keeps as headers and metadata lies in `.meta/<key>.json`, written before the object.

    A file is written as `<key>#<n>`, then linked (an object: the link fails if the key is taken) or renamed (a
    manifest), so no reader sees half a file; a killed writer leaves the temporary file, which `delete` removes.

    A put that is verified is done with plain files in one hop to a thread: `LocalStore` hops to a thread of its own and
    back for each of its three calls, which costs 0.1 ms of CPU more, of 0.5.
    """

    def __init__(self, folder: Path, url: str) -> None:
        try:
            self._files = LocalStore(folder, mkdir=True)
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"cannot create {folder}: choose a folder that is writable. {error}") from error
        super().__init__(self._files, url)
        self._folder = folder
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    async def stored(self, key: str, data: bytes) -> bool:
        """Reads it back: a folder's ETag says nothing about the bytes, so a HEAD would only come before the reading."""
        try:
            return await self.get(key) == data
        except ObjectMissing:
            return False

    async def remove_temporary(self, before: datetime, *, dry_run: bool = False) -> Sequence[ListedObject]:
        """Also the files of writers that were killed before they gave them their names."""
        return [
            *await super().remove_temporary(before, dry_run=dry_run),
            *await self._in_thread(self._remove_unnamed, before, dry_run),
        ]

    def _remove_unnamed(self, before: datetime, dry_run: bool) -> Sequence[ListedObject]:
        left = []
        with self._translated("clean", ""):
            for file in self._folder.rglob("*#*"):
                with suppress(FileNotFoundError):  # it has got its name meanwhile
                    found = _listed(file, self._folder)
                    if not _TEMPORARY.fullmatch(file.name) or found.last_modified >= before:
                        continue
                    if not dry_run:
                        file.unlink()
                    left.append(found)
        return left

    async def _put_and_compare(
        self, key: str, data: bytes, attributes: "Attributes", *, expect_present: bool, renew: bool
    ) -> bool:
        with self._translated("put", key):
            return await self._in_thread(self._put_and_read_back, key, data, attributes, renew)

    async def _create(self, key: str, data: bytes, attributes: "Attributes") -> None:
        await self._in_thread(self._create_now, key, data, attributes)

    def _put_and_read_back(self, key: str, data: bytes, attributes: "Attributes", renew: bool) -> bool:
        try:
            self._create_now(key, data, attributes)
        except AlreadyExistsError:
            if renew:
                self._replace_now(key, data, attributes)
        try:
            return (self._folder / key).read_bytes() == data
        except FileNotFoundError:
            return False

    def _create_now(self, key: str, data: bytes, attributes: "Attributes") -> None:
        file = self._folder / key
        if file.exists():  # the manifest of the object that is there stays as it is
            raise AlreadyExistsError(key)
        self._describe_now(key, attributes)
        with _unnamed(file, data) as written:
            try:
                os.link(written, file)
            except FileExistsError:
                raise AlreadyExistsError(key) from None

    def _replace_now(self, key: str, data: bytes, attributes: "Attributes") -> None:
        self._describe_now(key, attributes)
        _replace(self._folder / key, data)

    def _describe_now(self, key: str, attributes: "Attributes") -> None:
        _replace(self._folder / _manifest(key), json.dumps(attributes).encode())

    async def _described(self, key: str, attributes: "Attributes") -> "Attributes":
        try:
            result = await self._files.get_async(_manifest(key))
        except FileNotFoundError:  # somebody else put the object there
            return {}
        try:
            described: dict[str, str] = json.loads((await result.bytes_async()).to_bytes())
        except ValueError:  # a power failure can leave it empty: nothing here waits for the disk
            return {}
        return described

    async def _remove(self, key: str) -> None:
        for path in (key, _manifest(key)):
            with suppress(FileNotFoundError):
                await self._files.delete_async(path)
            _remove_temporary_files(self._folder / path)

    async def _in_thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _advice(self, reason: str) -> str:
        return "check that this folder is writable and its disk not full"


def _manifest(key: str) -> str:
    return f"{MANIFESTS}/{key}.json"


def _replace(file: Path, data: bytes) -> None:
    with _unnamed(file, data) as written:
        written.replace(file)


@contextmanager
def _unnamed(file: Path, data: bytes) -> Iterator[Path]:
    """A new file with these bytes beside the one that it is to become; gone at the end, whatever happened."""
    written = file.with_name(f"{file.name}#{secrets.randbits(64)}")
    try:
        try:
            written.write_bytes(data)
        except FileNotFoundError:
            file.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(data)
        yield written
    finally:
        written.unlink(missing_ok=True)


def _listed(file: Path, folder: Path) -> ListedObject:
    found = file.stat()
    return ListedObject(
        file.relative_to(folder).as_posix(), found.st_size, datetime.fromtimestamp(found.st_mtime, tz=UTC)
    )


def _remove_temporary_files(file: Path) -> None:
    for temporary in file.parent.glob(f"{escape(file.name)}#*"):
        temporary.unlink(missing_ok=True)
