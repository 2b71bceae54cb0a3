"""Admission to the pool: real workers, real pictures."""

import asyncio
import ctypes
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest
from PIL import Image

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.engine import transcoding
from cdn_pipeline.engine.pool import WorkerPool
from cdn_pipeline.engine.transcoding import (
    LARGE_MEMORY_BYTES,
    ORDINARY_FILE_BYTES,
    ORDINARY_MEMORY_BYTES,
    ORDINARY_PIXELS,
    Transcoder,
    transcoding_pool,
)
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import transcode
from cdn_pipeline_tests.engine import pool_tasks
from cdn_pipeline_tests.media.pictures import encoded, scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")

RECIPE = replace(WEBP_THUMBNAILS, effort=0)
ORDINARY = encoded(scene(300, 200), "JPEG")
LARGE = encoded(Image.new("RGB", (3000, 3000), "teal"), "PNG")

T = TypeVar("T")


class CountingPool(WorkerPool):
    """Knows what it was asked for, and how many tasks with the memory of a large picture it had at once."""

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers=workers, task_seconds=20)
        self.limits: list[int | None] = []
        self.large = self.most_large = 0

    async def run(self, function: Callable[..., T], *args: object, memory_bytes: int | None = None) -> T:
        self.limits.append(memory_bytes)
        self.large += memory_bytes == LARGE_MEMORY_BYTES
        self.most_large = max(self.most_large, self.large)
        try:
            return await super().run(function, *args, memory_bytes=memory_bytes)
        finally:
            self.large -= memory_bytes == LARGE_MEMORY_BYTES


@pytest.fixture
def pool() -> Iterator[CountingPool]:
    pool = CountingPool()
    yield pool
    pool.close()


def together(*calls: Awaitable[T]) -> list[T | BaseException]:
    async def all_of_them() -> list[T | BaseException]:
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)

    return asyncio.run(all_of_them())


def test_an_ordinary_picture_is_sent_once_and_within_ordinary_limits(pool: CountingPool) -> None:
    [done] = together(Transcoder(pool).transcode(ORDINARY, RECIPE))
    assert not isinstance(done, BaseException)
    assert (done.width, done.height) == (300, 200)
    assert pool.limits == [ORDINARY_MEMORY_BYTES]


def test_large_pictures_are_decoded_one_at_a_time_and_ordinary_ones_beside_them(pool: CountingPool) -> None:
    transcoder = Transcoder(pool)
    done = together(*(transcoder.transcode(data, RECIPE) for data in [LARGE, ORDINARY] * 4))
    assert [result.width for result in done if not isinstance(result, BaseException)] == [3000, 300] * 4
    assert pool.most_large == 1
    assert pool.limits.count(LARGE_MEMORY_BYTES) == 4


def test_a_large_file_waits_for_its_turn_whatever_its_header_says(pool: CountingPool) -> None:
    data = ORDINARY + bytes(ORDINARY_FILE_BYTES)
    [done] = together(Transcoder(pool).transcode(data, RECIPE))
    assert not isinstance(done, BaseException)
    assert pool.limits == [LARGE_MEMORY_BYTES]


def test_a_picture_beyond_all_limits_is_too_large(pool: CountingPool) -> None:
    [failure] = together(Transcoder(pool).transcode(encoded(Image.new("1", (10_000, 5_001)), "PNG"), RECIPE))
    assert isinstance(failure, ImageFailure)
    assert failure.kind is FailureKind.IMAGE_TOO_LARGE
    assert pool.restarts == 0


def test_a_header_that_lies_about_the_size_gets_the_memory_of_an_ordinary_picture(
    pool: CountingPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 24 << 20  # so that a picture of 25 megapixels, 37 MB as YUV, will do
    monkeypatch.setattr(transcoding, "ORDINARY_MEMORY_BYTES", limit)
    avif = bytearray(encoded(Image.new("RGB", (5000, 5000)), "AVIF", speed=10, quality=1))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">2I", 100, 100)
    [failure] = together(Transcoder(pool).transcode(bytes(avif), RECIPE))
    assert isinstance(failure, ImageFailure)
    assert failure.kind in {FailureKind.IMAGE_CORRUPT, FailureKind.OUT_OF_MEMORY}
    assert set(pool.limits) == {limit}


@pytest.mark.parametrize("image_format", ["WEBP", "PNG", "AVIF", "GIF"])
def test_the_largest_ordinary_picture_fits_into_ordinary_memory(pool: CountingPool, image_format: str) -> None:
    side = int(ORDINARY_PIXELS**0.5)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGBA", (side, side), (10, 200, 30, 90))
    options = {"speed": 10} if image_format == "AVIF" else {"method": 0} if image_format == "WEBP" else {}
    [done] = together(Transcoder(pool).transcode(encoded(picture, image_format, exif=exif, **options), RECIPE))
    assert not isinstance(done, BaseException)
    assert pool.limits == [ORDINARY_MEMORY_BYTES]


def test_a_picture_that_kills_its_worker_fails_alone(pool: CountingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    transcoder = Transcoder(pool)

    async def calls() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(transcoding, "transcode", pool_tasks.crash_over)
            with pytest.raises(ImageFailure) as caught:
                await transcoder.transcode(ORDINARY, RECIPE)
            assert caught.value.kind is FailureKind.WORKER_DIED
        assert (await transcoder.transcode(ORDINARY, RECIPE)).width == 300

    asyncio.run(asyncio.wait_for(calls(), 60))


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "kind"),
    [(20, 0.5, FailureKind.TRANSCODE_TIMEOUT), (0.5, 20, FailureKind.IMAGE_TIMEOUT)],
)
def test_a_picture_is_to_blame_for_cpu_time_and_not_for_a_slow_machine(
    seconds: float, cpu_seconds: float, kind: FailureKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcoding, "transcode", pool_tasks.decode_for_ever)
    pool = WorkerPool(workers=1, task_seconds=seconds, cpu_seconds=cpu_seconds)
    try:
        [failure] = together(Transcoder(pool).transcode(ORDINARY, RECIPE))
    finally:
        pool.close()
    assert isinstance(failure, ImageFailure)
    assert failure.kind is kind


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator")
def test_one_picture_after_the_other_uses_the_same_memory() -> None:
    photographs = [make_photograph(seed, width=1080, height=1350, quality=80) for seed in range(12)]

    async def page_faults(pool: WorkerPool) -> int:
        for photograph in photographs[:4]:
            await pool.run(transcode, photograph, WEBP_THUMBNAILS)
        before = await pool.run(pool_tasks.page_faults)
        for photograph in photographs[4:]:
            await pool.run(transcode, photograph, WEBP_THUMBNAILS)
        return await pool.run(pool_tasks.page_faults) - before

    pool = transcoding_pool(1, task_seconds=20)
    try:
        assert asyncio.run(page_faults(pool)) < 500  # thousands without
    finally:
        pool.close()
