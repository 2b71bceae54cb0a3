"""Large bodies wait for each other, so that the bytes in hand stay bounded whatever hosts send."""

import asyncio

import pytest

from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.fetch.body import LARGE_BODY_BYTES, BodyRoom
from cdn_pipeline.fetch.client import Downloader, DownloadLimits
from cdn_pipeline_tests.fetch.origins import always, origin, response
from cdn_pipeline_tests.fetch.test_client import LOOPBACK

LARGE = b"\xff\xd8\xff" + bytes(LARGE_BODY_BYTES)


def test_a_large_body_waits_until_the_image_before_it_is_done() -> None:
    async def scenario() -> None:
        places = asyncio.Semaphore(1)
        first, second = BodyRoom(places), BodyRoom(places)
        await first.grow(LARGE_BODY_BYTES + 1)
        await first.grow(2 * LARGE_BODY_BYTES)  # it has its place
        waiting = asyncio.create_task(second.grow(LARGE_BODY_BYTES + 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        first.leave()
        await waiting
        second.leave()
        second.leave()
        assert not places.locked()

    asyncio.run(scenario())


def test_ordinary_bodies_never_wait() -> None:
    asyncio.run(BodyRoom(asyncio.Semaphore(0)).grow(LARGE_BODY_BYTES))


def test_the_wait_for_a_place_is_not_counted_as_slowness_of_the_host() -> None:
    async def scenario() -> int:
        limits, places = DownloadLimits(total_seconds=1.0), asyncio.Semaphore(0)
        async with (
            origin(always(response(200, LARGE))) as log,
            Downloader(allowed_networks=LOOPBACK, limits=limits) as downloader,
        ):
            asyncio.get_running_loop().call_later(1.5, places.release)
            return len((await downloader.download(log.base, room=BodyRoom(places))).data)

    assert asyncio.run(scenario()) == len(LARGE)


def test_a_drip_is_cut_off_all_the_same_once_it_has_its_place() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + LARGE)
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        limits = DownloadLimits(total_seconds=0.5)
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.jpg"
        async with server, Downloader(allowed_networks=LOOPBACK, limits=limits) as downloader:
            await downloader.download(url, room=BodyRoom(asyncio.Semaphore(1)))

    with pytest.raises(ImageFailure) as failed:
        asyncio.run(scenario())
    assert failed.value.kind is FailureKind.DOWNLOAD_TIMEOUT
