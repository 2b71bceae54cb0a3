"""Hostile files in real workers: each ends as a picture or a failure, and the next picture is none the worse."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest

from benchmarks.fuzz_images import PICTURE, fuzz, mutations, seeds
from cdn_pipeline.engine.pool import WorkerPool
from cdn_pipeline.engine.transcoding import Transcoder, transcoding_pool
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS
from cdn_pipeline_tests.media import hostile
from cdn_pipeline_tests.media.pictures import encoded, scene

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory")

RECIPE = replace(WEBP_THUMBNAILS, effort=0)
OF_ITS_OWN = {
    FailureKind.NOT_AN_IMAGE,
    FailureKind.UNSUPPORTED_FORMAT,
    FailureKind.IMAGE_CORRUPT,
    FailureKind.IMAGE_TOO_LARGE,
    FailureKind.OUT_OF_MEMORY,
}


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = transcoding_pool(2, task_seconds=20)
    yield pool
    pool.close()


def test_every_hostile_file_ends_as_a_picture_or_as_a_failure_of_its_own(pool: WorkerPool) -> None:
    async def endings() -> dict[str, str]:
        transcoder, found = Transcoder(pool), {}
        for name, make in hostile.FILES.items():
            try:
                found[name] = (await transcoder.transcode(make(), RECIPE)).format
            except ImageFailure as failure:
                found[name] = failure.kind
            await transcoder.transcode(encoded(scene(30, 20), "JPEG"), RECIPE)
        return found

    found = asyncio.run(endings())
    assert {ending for ending in found.values() if ending not in OF_ITS_OWN} <= {"jpeg", "png", "gif", "webp", "avif"}
    assert found["text chunks of 100 MB"] == found["xmp of 40 MB"] == FailureKind.IMAGE_CORRUPT
    assert found["exif directories in a circle"] == "png"


def test_mutated_files_come_out_as_pictures_or_as_failures_of_their_own(pool: WorkerPool) -> None:
    outcomes, findings = asyncio.run(fuzz(pool, islice(mutations(seeds(), seed=4), 1500), seconds=300))
    assert findings == []
    assert set(outcomes) <= {PICTURE, *OF_ITS_OWN}
    assert outcomes.total() == 1500
    assert outcomes[PICTURE] > 100  # some survive: the mutations are small enough to reach the pixels
