"""What the memory budget costs and keeps: ordinary pictures with and without it, and large ones.

    .venv/bin/python -m benchmarks.admission [--images 60] [--rounds 5]

The same photographs of 1080 px go through the same workers straight and through the budget, in turns; what counts is
the ratio. Then pictures of 50 megapixels with transparency, six at once, both ways: the peak of all workers.
"""

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable
from io import BytesIO

import psutil
from PIL import Image

from cdn_pipeline.demo.photographs import make_photograph
from cdn_pipeline.engine.pool import WorkerPool
from cdn_pipeline.engine.transcoding import Transcoder, transcoding_pool
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline.media.transcode import Transcoded, transcode

WORKERS = 2
LARGE_AT_ONCE = 6

Way = Callable[[bytes], Awaitable[Transcoded]]


def large_picture() -> bytes:
    """A PNG of 50 megapixels whose pixels take 12 bytes each at the most."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    Image.new("RGBA", (8000, 6250), (20, 90, 160, 128)).save(buffer, "PNG", exif=exif, compress_level=1)
    return buffer.getvalue()


async def images_per_second(way: Way, pictures: list[bytes]) -> float:
    """How fast the pictures go one way."""
    started = time.monotonic()
    await asyncio.gather(*map(way, pictures))
    return len(pictures) / (time.monotonic() - started)


async def peak_megabytes(way: Way, pictures: list[bytes]) -> tuple[float, float]:
    """The most that all workers together took (proportional set size, looked at every 20 ms), and the seconds."""
    started, peak = time.monotonic(), 0.0
    work = asyncio.gather(*map(way, pictures))
    while not work.done():
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process().children()
            peak = max(peak, sum(child.memory_full_info().pss for child in children) / 1e6)
        await asyncio.sleep(0.02)
    await work
    return peak, time.monotonic() - started


async def compare(pool: WorkerPool, images: int, rounds: int) -> None:
    """Prints both comparisons."""
    transcoder = Transcoder(pool)

    def straight(data: bytes) -> Awaitable[Transcoded]:
        return pool.run(transcode, data, WEBP_THUMBNAILS)

    def admitted(data: bytes) -> Awaitable[Transcoded]:
        return transcoder.transcode(data, WEBP_THUMBNAILS)

    pictures = [make_photograph(seed, width=1080, height=1080, quality=85) for seed in range(images)]
    await images_per_second(straight, pictures[:8])
    ratios = []
    for _ in range(rounds):
        one, other = await images_per_second(straight, pictures), await images_per_second(admitted, pictures)
        ratios.append(other / one)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"ordinary pictures, admitted ÷ straight: {middle:.3f} ({low:.3f} to {high:.3f})")
    large = [large_picture()] * LARGE_AT_ONCE
    for name, way in (("straight", straight), ("admitted", admitted)):
        peak, seconds = await peak_megabytes(way, large)
        print(f"{LARGE_AT_ONCE} of 50 megapixels, {name}: workers {peak:.0f} MB at most, {seconds:.0f} s")


def main() -> None:
    """Runs both comparisons on one pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    pool = transcoding_pool(WORKERS, task_seconds=120)
    try:
        asyncio.run(compare(pool, arguments.images, arguments.rounds))
    finally:
        pool.close()


if __name__ == "__main__":
    main()
