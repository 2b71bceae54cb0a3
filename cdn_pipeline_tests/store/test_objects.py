import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdn_pipeline.demo.serving import listening
from cdn_pipeline.store.objects import CACHE_CONTROL, ObjectMissing, ObjectStore, StoreUnavailable
from cdn_pipeline_tests.s3 import S3Server

pytestmark = pytest.mark.anyio

KEY = "th/ig/owner/avatar/256/0123456789abcdef.webp"
DATA = os.urandom(30_000)
METADATA = {"owner": "owner", "image": "42", "original": "ab" * 32, "recipe": "webp-thumbnails 1"}
SHORT = timedelta(seconds=0.3)

only_write_once = pytest.mark.parametrize("object_store", ["file", "moto"], indirect=True)
only_folders = pytest.mark.parametrize("object_store", ["file"], indirect=True)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The endpoint of an S3 server that answers every request by `handler`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    async with listening(application) as endpoint_url:
        yield endpoint_url


def store_at(endpoint_url: str, timeout: timedelta = SHORT) -> ObjectStore:
    return ObjectStore.from_url(
        "s3://bucket", endpoint_url=endpoint_url, access_key_id="id", secret_access_key="secret", timeout=timeout
    )


async def put(store: ObjectStore, key: str = KEY, data: bytes = DATA) -> bool:
    return await store.put_new(key, data, content_type="image/webp", cache_control=CACHE_CONTROL, metadata=METADATA)


async def keys(store: ObjectStore, prefix: str = "") -> set[str]:
    return {key async for key in store.list(prefix)}


def folder_of(store: ObjectStore) -> Path:
    return Path(store.url.removeprefix("file://"))


async def test_an_object_comes_back_with_all_that_describes_it(object_store: ObjectStore) -> None:
    assert await put(object_store)
    head = await object_store.head(KEY)
    assert head is not None
    assert (head.size, head.content_type, head.cache_control) == (len(DATA), "image/webp", CACHE_CONTROL)
    assert head.metadata == METADATA
    assert await object_store.get(KEY) == DATA
    assert await object_store.stored(KEY, DATA)


async def test_an_object_that_is_not_there_is_missing(object_store: ObjectStore) -> None:
    assert await object_store.head(KEY) is None
    assert not await object_store.stored(KEY, DATA)
    with pytest.raises(ObjectMissing, match=KEY):
        await object_store.get(KEY)


async def test_a_deleted_object_is_gone_and_deleting_it_again_is_no_error(object_store: ObjectStore) -> None:
    await put(object_store)
    await object_store.delete(KEY)
    await object_store.delete(KEY)
    assert await object_store.head(KEY) is None
    assert await keys(object_store) == set()
    assert await put(object_store)


async def test_a_listing_has_the_keys_below_whole_segments(object_store: ObjectStore) -> None:
    for key in ("th/ig/a/1.webp", "th/ig/a/b/2.webp", "th/ig/ab/3.webp", "th/other/4.webp"):
        await put(object_store, key, b"x")
    assert await keys(object_store, "th/ig/a") == {"th/ig/a/1.webp", "th/ig/a/b/2.webp"}
    assert len(await keys(object_store)) == 4
    assert await keys(object_store, "nothing") == set()


async def test_a_listing_tells_size_and_time_of_each_object(object_store: ObjectStore) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=2)  # S3 tells whole seconds
    await object_store.put_new(KEY, DATA, content_type="image/webp")
    [[listed]] = [page async for page in object_store.pages("th")]
    assert (listed.key, listed.size) == (KEY, len(DATA))
    assert begun < listed.last_modified < datetime.now(UTC) + timedelta(seconds=2)


async def test_what_a_check_that_was_killed_left_is_removed(object_store: ObjectStore) -> None:
    await object_store.put_new(".check/abc", b"", content_type="application/octet-stream")
    assert await object_store.remove_temporary(datetime.now(UTC) - timedelta(hours=1)) == []
    later = datetime.now(UTC) + timedelta(hours=1)
    for dry_run in (True, False):
        assert [listed.key for listed in await object_store.remove_temporary(later, dry_run=dry_run)] == [".check/abc"]
    assert await object_store.remove_temporary(later) == []


async def test_a_listing_goes_on_after_the_first_page(object_store: ObjectStore) -> None:
    names = {f"many/{number}" for number in range(1100)}
    for start in range(0, 1100, 100):
        await asyncio.gather(*[put(object_store, f"many/{number}", b"x") for number in range(start, start + 100)])
    assert await keys(object_store, "many") == names


@only_write_once
async def test_the_first_put_of_a_key_wins(object_store: ObjectStore) -> None:
    assert await put(object_store)
    assert not await object_store.put_new(KEY, b"other", content_type="text/plain", metadata={"owner": "other"})
    head = await object_store.head(KEY)
    assert head is not None
    assert (head.content_type, head.metadata) == ("image/webp", METADATA)
    assert await object_store.get(KEY) == DATA


@only_write_once
async def test_one_of_six_puts_at_once_wins(object_store: ObjectStore) -> None:
    bodies = [bytes([number]) * 30_000 for number in range(6)]
    written = await asyncio.gather(*[put(object_store, KEY, body) for body in bodies])
    assert sum(written) == 1
    assert await object_store.get(KEY) == bodies[written.index(True)]


async def test_an_expected_object_is_looked_for_before_it_is_put(object_store: ObjectStore) -> None:
    async def put_expected() -> bool:
        return await object_store.put_new(KEY, DATA, content_type="image/webp", expect_present=True)

    assert await put_expected()
    assert not await put_expected()


async def put_verified(store: ObjectStore, **more: bool) -> None:
    await store.put_verified(
        KEY, DATA, content_type="image/webp", cache_control=CACHE_CONTROL, metadata=METADATA, **more
    )


@only_write_once
async def test_a_verified_put_is_there_with_all_that_describes_it(object_store: ObjectStore) -> None:
    await asyncio.gather(*(put_verified(object_store) for _ in range(3)))
    await put_verified(object_store, expect_present=True)
    head = await object_store.head(KEY)
    assert head is not None
    assert (head.content_type, head.cache_control, head.metadata) == ("image/webp", CACHE_CONTROL, METADATA)
    assert await object_store.get(KEY) == DATA


@only_write_once
@pytest.mark.parametrize("expect_present", [False, True])
async def test_a_verified_put_replaces_a_damaged_object(object_store: ObjectStore, expect_present: bool) -> None:
    await put(object_store, data=DATA[:-1])
    await put_verified(object_store, expect_present=expect_present)
    assert await object_store.get(KEY) == DATA


@pytest.mark.parametrize("expect_present", [False, True])
async def test_a_renewed_object_has_the_metadata_and_the_age_of_the_last_put(
    object_store: ObjectStore, expect_present: bool
) -> None:
    await put(object_store)
    [[before]] = [page async for page in object_store.pages()]
    await asyncio.sleep(1.1)  # S3 tells whole seconds
    await object_store.put_verified(
        KEY,
        DATA,
        content_type="image/webp",
        cache_control=CACHE_CONTROL,
        metadata={"owner": "other"},
        expect_present=expect_present,
        renew=True,
    )
    [[after]] = [page async for page in object_store.pages()]
    head = await object_store.head(KEY)
    assert head is not None
    assert (head.metadata, await object_store.get(KEY)) == ({"owner": "other"}, DATA)
    assert after.last_modified > before.last_modified


async def test_a_store_that_only_says_that_it_stored_is_not_believed() -> None:
    async def lie(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=404 if request.method == "HEAD" else 200, headers={"ETag": '"0"'})

    async with serving(lie) as endpoint_url:
        with pytest.raises(StoreUnavailable, match="does not keep"):
            await put_verified(store_at(endpoint_url))


async def test_other_bytes_under_the_key_are_not_what_was_stored(object_store: ObjectStore) -> None:
    await put(object_store)
    assert not await object_store.stored(KEY, DATA[:-1])
    assert not await object_store.stored(KEY, DATA[:-1] + bytes([DATA[-1] ^ 1]))


async def test_a_working_store_passes_the_check_and_keeps_nothing_of_it(object_store: ObjectStore) -> None:
    await object_store.check()
    assert await keys(object_store) == set()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,10})?", fullmatch=True),
        st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True),
        max_size=5,
    )
)
def test_any_metadata_comes_back(object_store: ObjectStore, metadata: dict[str, str]) -> None:
    async def round_trip() -> None:
        key = f"metadata/{uuid4().hex}"
        await object_store.put_new(key, b"", content_type="image/webp", metadata=metadata)
        head = await object_store.head(key)
        assert head is not None
        assert head.metadata == metadata

    asyncio.run(round_trip())


@pytest.mark.parametrize(
    "metadata",
    [
        {"Owner": "a"},
        {"owner_id": "a"},
        {"": "a"},
        {"content-type": "a"},
        {"owner": ""},
        {"owner": " a"},
        {"owner": "Zoë"},
        {"owner": "a\nb"},
        {"owner": "a" * 2100},
    ],
)
async def test_metadata_that_would_not_come_back_is_refused(
    object_store: ObjectStore, metadata: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="metadata"):
        await object_store.put_new(KEY, DATA, content_type="image/webp", metadata=metadata)
    assert await object_store.head(KEY) is None


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_an_http_client_gets_the_headers(name: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    bucket = server.new_bucket()
    asyncio.run(put(server.store(f"s3://{bucket}")))
    with urlopen(server.presigned_url(bucket, KEY)) as response:
        assert response.read() == DATA
        assert response.headers["Content-Type"] == "image/webp"
        assert response.headers["Cache-Control"] == CACHE_CONTROL
        assert response.headers["x-amz-meta-recipe"] == METADATA["recipe"]


@pytest.mark.parametrize("answer_to_get", [b"y", b"y" * len(DATA), None])
async def test_a_server_that_lies_is_caught(answer_to_get: bytes | None) -> None:
    async def lie(request: web.Request) -> web.Response:
        await request.read()
        if request.method == "PUT":
            return web.Response(headers={"ETag": '"0"'})
        if answer_to_get is None:
            return web.Response(status=404)
        return web.Response(
            body=answer_to_get, headers={"ETag": '"0"', "Last-Modified": "Sun, 21 Jun 2026 10:00:00 GMT"}
        )

    async with serving(lie) as endpoint_url:
        store = store_at(endpoint_url)
        assert await put(store)
        assert not await store.stored(KEY, DATA)
        with pytest.raises(StoreUnavailable, match="does not give them back"):
            await store.check()


async def test_a_server_that_loses_metadata_fails_the_check() -> None:
    bodies: dict[str, bytes] = {}

    async def keep_the_bytes_only(request: web.Request) -> web.Response:
        if request.method == "PUT":
            bodies[request.path] = await request.read()
            return web.Response(headers={"ETag": '"0"'})
        return web.Response(
            body=bodies[request.path], headers={"ETag": '"0"', "Last-Modified": "Sun, 21 Jun 2026 10:00:00 GMT"}
        )

    async with serving(keep_the_bytes_only) as endpoint_url:
        store = store_at(endpoint_url)
        await put(store)
        assert await store.stored(KEY, DATA)
        with pytest.raises(StoreUnavailable, match="does not give them back"):
            await store.check()


@pytest.mark.timeout(60)
async def test_an_endpoint_that_cannot_be_reached_is_named() -> None:
    store = store_at("http://127.0.0.1:1")
    for operation in (put(store), store.get(KEY), store.check()):
        with pytest.raises(StoreUnavailable, match=r"R2_ENDPOINT_URL.*http://127\.0\.0\.1:1/"):
            await operation


@pytest.mark.timeout(60)
async def test_a_server_that_never_answers_is_given_up() -> None:
    async def stall(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async with serving(stall) as endpoint_url:
        for operation in (put(store_at(endpoint_url)), store_at(endpoint_url).head(KEY)):
            with pytest.raises(StoreUnavailable, match="R2_ENDPOINT_URL"):
                await operation


@pytest.mark.parametrize("status", [429, 503])
async def test_an_overloaded_server_is_asked_again(status: int) -> None:
    answers = iter([web.Response(status=status), web.Response(headers={"ETag": '"0"'})])

    async def recover(_: web.Request) -> web.Response:
        return next(answers)

    async with serving(recover) as endpoint_url:
        assert await put(store_at(endpoint_url, timedelta(seconds=20)))


async def test_wrong_credentials_are_named(rclone_server: S3Server) -> None:
    bucket = rclone_server.new_bucket()
    store = rclone_server.store(f"s3://{bucket}", secret_access_key="not-the-secret-access-key")
    for operation in (put(store), store.head(KEY), store.get(KEY), store.delete(KEY), keys(store), store.check()):
        with pytest.raises(StoreUnavailable, match="R2_SECRET_ACCESS_KEY") as caught:
            await operation
        assert "not-the-secret-access-key" not in str(caught.value)


@pytest.mark.parametrize("name", ["moto", "rclone"])
async def test_a_missing_bucket_is_named_and_is_no_missing_object(name: str, request: pytest.FixtureRequest) -> None:
    server: S3Server = request.getfixturevalue(f"{name}_server")
    store = server.store("s3://no-such-bucket")
    for operation in (put(store), store.get(KEY), store.delete(KEY), keys(store), store.check()):
        with pytest.raises(StoreUnavailable, match="create the bucket"):
            await operation


async def test_the_environments_aws_settings_do_not_mix_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stray")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    seen: list[web.Request] = []

    async def record(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(headers={"ETag": '"0"'})

    async with serving(record) as endpoint_url:
        assert await put(store_at(endpoint_url))
    assert "x-amz-security-token" not in seen[0].headers
    assert "/auto/s3/" in seen[0].headers["Authorization"]


@pytest.mark.parametrize("url", ["", "objects", "file://relative/objects", "https://bucket", "s3://", "gs://bucket"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///folder or s3://bucket"):
        ObjectStore.from_url(url)


def test_half_a_pair_of_credentials_is_refused() -> None:
    with pytest.raises(ValueError, match="both"):
        ObjectStore.from_url("s3://bucket", access_key_id="id")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="writable"):
        ObjectStore.from_url((tmp_path / "file" / "objects").as_uri())


async def test_a_folder_with_blanks_and_umlauts_holds_objects_under_their_keys(tmp_path: Path) -> None:
    store = ObjectStore.from_url((tmp_path / "my objects%20ö").as_uri())
    await put(store)
    assert (tmp_path / "my objects%20ö" / KEY).read_bytes() == DATA


@only_folders
async def test_a_file_that_somebody_put_there_is_an_object_without_description(object_store: ObjectStore) -> None:
    file = folder_of(object_store) / KEY
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    head = await object_store.head(KEY)
    assert head is not None
    assert (head.size, head.content_type, head.metadata) == (len(DATA), None, {})


@only_folders
async def test_deleting_leaves_no_file_behind_not_even_a_killed_writers(object_store: ObjectStore) -> None:
    await put(object_store)
    for leftover in (KEY, f".meta/{KEY}.json"):
        (folder_of(object_store) / f"{leftover}#1").write_bytes(b"half")
    assert await keys(object_store) == {KEY}
    await object_store.delete(KEY)
    assert [path for path in folder_of(object_store).rglob("*") if path.is_file()] == []


@only_folders
async def test_a_full_or_forbidden_folder_is_named(object_store: ObjectStore) -> None:
    (folder_of(object_store) / "th").write_bytes(b"a file where a folder should be")
    with pytest.raises(StoreUnavailable, match="writable"):
        await put(object_store)


SIZE = 64_000_000  # large enough for a kill to arrive while it is written

WRITER = f"""
import asyncio, sys
from cdn_pipeline.store.objects import ObjectStore

async def write() -> None:
    store = ObjectStore.from_url(sys.argv[1])
    for number in range(10):
        await store.put_new(f"written/{{number}}", bytes([number]) * {SIZE}, content_type="image/webp",
            metadata={{"number": str(number)}})

asyncio.run(write())
"""


def half_written(folder: Path) -> set[Path]:
    return {file for file in folder.glob("written/*#*") if file.stat().st_size < SIZE}


def kill_a_writer_while_it_writes(store: ObjectStore) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, store.url]) as writer:
        with suppress(FileNotFoundError):  # a temporary file may be linked and gone before we look at its size
            while writer.poll() is None and not half_written(folder_of(store)):
                pass
        writer.kill()


@only_folders
def test_a_writer_killed_while_it_writes_leaves_whole_objects_only(object_store: ObjectStore) -> None:
    folder = folder_of(object_store)
    for _ in range(10):  # a kill may arrive between two objects
        kill_a_writer_while_it_writes(object_store)
        if halves := half_written(folder):
            break
    cut_short = {f"written/{file.name.partition('#')[0]}" for file in halves}
    assert cut_short

    async def assert_only_whole_objects_are_visible() -> None:
        visible = await keys(object_store)
        assert not visible & cut_short
        for key in visible:
            number = int(key.removeprefix("written/"))
            assert await object_store.stored(key, bytes([number]) * SIZE)
        for key in cut_short:
            assert await object_store.head(key) is None
            assert await object_store.put_new(key, b"again", content_type="image/webp")
            assert await object_store.get(key) == b"again"
            await object_store.delete(key)
        assert not half_written(folder)

    asyncio.run(assert_only_whole_objects_are_visible())
