"""Transcoding in worker processes within a memory budget: ordinary pictures side by side, large ones one at a time.

With two workers the budget is: 180 MB for the run, 50 MB for each idle worker, 160 MiB for an ordinary picture beside
512 MiB for a large one: below 1 GB, whatever the bytes say, because the kernel keeps both limits. Instagram's pictures
have at most 2.6 megapixels, so none of them ever waits.
"""

import asyncio

from cdn_pipeline.engine.pool import OutOfCpuTime, TaskTimeout, WorkerDied, WorkerPool
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.allocator import keep_freed_memory
from cdn_pipeline.media.recipes import Recipe
from cdn_pipeline.media.transcode import Transcoded, transcode

ORDINARY_PIXELS = 6_000_000  # WebP takes most: 16 bytes per pixel
ORDINARY_FILE_BYTES = 8 << 20  # decoders copy the file up to three times
ORDINARY_MEMORY_BYTES = 160 << 20
LARGE_MEMORY_BYTES = 512 << 20  # 50 megapixels of PNG, GIF and JPEG take up to 480; WebP fits up to 33, AVIF 40


def transcoding_pool(workers: int, task_seconds: float, cpu_seconds: float | None = None) -> WorkerPool:
    """Workers that are prepared for `Transcoder`; arguments as `WorkerPool` has them."""
    return WorkerPool(
        workers=workers,
        task_seconds=task_seconds,
        cpu_seconds=cpu_seconds,
        modules=["cdn_pipeline.media.transcode"],
        initializer=keep_freed_memory,
    )


class Transcoder:
    """Admits pictures to a pool, from one asyncio loop."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._large = asyncio.Lock()

    async def transcode(self, data: bytes, recipe: Recipe) -> Transcoded:
        """The renditions of an original.

        Nobody here reads the header: what has more than `ORDINARY_PIXELS` is found out by the worker, before it decodes
        a pixel, and comes back to wait for its turn.

        Raises:
            ImageFailure: as `media.transcode`, and TRANSCODE_TIMEOUT, IMAGE_TIMEOUT, OUT_OF_MEMORY or WORKER_DIED.
            PoolBroken, PoolUnusable: as `WorkerPool.run`.
        """
        try:
            if len(data) <= ORDINARY_FILE_BYTES:
                try:
                    return await self._pool.run(
                        transcode, data, recipe, ORDINARY_PIXELS, memory_bytes=ORDINARY_MEMORY_BYTES
                    )
                except ImageFailure as failure:
                    if failure.kind is not FailureKind.IMAGE_TOO_LARGE:
                        raise
            async with self._large:
                return await self._pool.run(transcode, data, recipe, memory_bytes=LARGE_MEMORY_BYTES)
        except OutOfCpuTime as error:
            raise ImageFailure(FailureKind.TRANSCODE_TIMEOUT, str(error)) from error
        except TaskTimeout as error:  # it got too little CPU time: a busy machine is not the picture's fault
            raise ImageFailure(FailureKind.IMAGE_TIMEOUT, str(error)) from error
        except WorkerDied as error:
            raise ImageFailure(FailureKind.WORKER_DIED, str(error)) from error
        except MemoryError as error:
            raise ImageFailure(FailureKind.OUT_OF_MEMORY, str(error)) from error
