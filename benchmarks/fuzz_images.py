"""Mutates image files and transcodes them in worker processes: only pictures and failures may come out.

    .venv/bin/python -m benchmarks.fuzz_images --seconds 60 [--seed 1] [FILE …]

Without files it mutates small ones that it makes in every format of the allow list. Anything else than a picture or an
`ImageFailure` ends it with status 1 and leaves the bytes in a file; so does a worker that died.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image

from cdn_pipeline.engine.pool import WorkerPool
from cdn_pipeline.engine.transcoding import Transcoder, transcoding_pool
from cdn_pipeline.failures import FailureKind, ImageFailure
from cdn_pipeline.media.decode import DECODABLE
from cdn_pipeline.media.recipes import WEBP_THUMBNAILS

PICTURE = "picture"
BATCH = 64

# Numbers at which sizes, counts and offsets overflow or vanish.
_EDGES = [
    number.to_bytes(size, "big") for size in (1, 2, 4) for number in (0, 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
]


@dataclass(frozen=True, slots=True)
class Finding:
    """Bytes that came to something else than a picture or a failure of their own."""

    data: bytes
    what: str


def seeds() -> list[bytes]:
    """A small file of each format, with transparency, EXIF and several frames where the format has them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    picture = Image.radial_gradient("L").resize((48, 32)).convert("RGB")
    clear = picture.copy()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    files = [_encoded(picture, "JPEG", exif=exif, progressive=progressive) for progressive in (False, True)]
    files.append(_encoded(picture.convert("CMYK"), "JPEG"))
    for image_format in sorted(DECODABLE - {"jpeg"}):
        files.append(_encoded(clear, image_format, exif=exif))
        files.append(_encoded(clear, image_format, save_all=True, append_images=[picture.convert("RGBA")], exif=exif))
    return files


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def mutations(files: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Mutated files without end, the same ones for the same seed."""
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            _mutate(data, files, chance)
        yield bytes(data)


def _mutate(data: bytearray, files: Sequence[bytes], chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    if chance.random() < 0.4:  # headers decide more than pixels
        at = min(at, chance.randrange(200))
    length = chance.choice((1, 1, 2, 4, 40))
    match chance.choice(("flip", "edge", "noise", "cut", "repeat", "splice", "truncate")):
        case "flip" if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case "edge":
            edge = chance.choice(_EDGES)
            data[at : at + len(edge)] = edge
        case "noise":
            data[at : at + length] = chance.randbytes(length)
        case "cut":
            del data[at : at + length]
        case "repeat":
            data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
        case "splice":
            other = chance.choice(files)
            start = chance.randrange(len(other))
            data[at:at] = other[start : start + 10 * length]
        case "truncate" if len(data) > 40 and chance.random() < 0.1:
            del data[at:]


async def fuzz(pool: WorkerPool, inputs: Iterator[bytes], seconds: float) -> tuple[Counter[str], list[Finding]]:
    """Transcodes until the time is over or the inputs end; how often each outcome came, and what should not have."""
    transcoder = Transcoder(pool)
    recipe = replace(WEBP_THUMBNAILS, effort=0)
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []

    async def try_one(data: bytes) -> None:
        outcome = PICTURE
        try:
            await transcoder.transcode(data, recipe)
        except ImageFailure as failure:
            outcome = failure.kind
        except Exception as error:
            outcome = type(error).__name__
            findings.append(Finding(data, repr(error)))
        if outcome in (FailureKind.WORKER_DIED, FailureKind.INTERNAL_ERROR):
            findings.append(Finding(data, outcome))
        outcomes[outcome] += 1

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batch = list(islice(inputs, BATCH))
        if not batch:
            break
        await asyncio.gather(*map(try_one, batch))
    return outcomes, findings


def main() -> None:
    """Fuzzes and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in arguments.files] or seeds()
    pool = transcoding_pool(os.cpu_count() or 1, task_seconds=30)
    try:
        outcomes, findings = asyncio.run(fuzz(pool, mutations(files, arguments.seed), arguments.seconds))
    finally:
        pool.close()
    print(f"{outcomes.total()} mutated files, {pool.restarts} workers replaced")
    for outcome, times in outcomes.most_common():
        print(f"{times:>8} {outcome}")
    for number, finding in enumerate(findings):
        path = Path(f"fuzz-{arguments.seed}-{number}.bin")
        path.write_bytes(finding.data)
        print(f"{path}: {finding.what}")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
