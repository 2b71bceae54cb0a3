"""One Celery task per image: download, Pillow, folders, one row of Postgres.

Run by the peer's own Python, without anything of the project: as a program it puts every queued job on the broker;
`celery --app celery_tasks worker` works through them. An application's careful first version: connections are kept from
task to task, an image is decoded once for both sizes, nothing is stored that Celery would have to look after.
"""

import hashlib
import os
import time
from io import BytesIO
from pathlib import Path

import httpx
import sqlalchemy as sa
from celery import Celery  # type: ignore[import-not-found,import-untyped,unused-ignore]
from PIL import Image, ImageOps

QUEUE = "cdn_processing"
SIZES = (256, 512)
QUALITY, METHOD = 85, 6

app = Celery("cdn_processing", broker=os.environ["CELERY_BROKER_URL"])
app.conf.update(task_default_queue=QUEUE, task_ignore_result=True, broker_connection_retry_on_startup=True)

# Made before the pool forks, but neither connects before its first use, in a process of its own.
client = httpx.Client(timeout=30)
engine = sa.create_engine(os.environ["CATALOG_DATABASE_URL"])
media = Path(os.environ["MEDIA_FOLDER"])


@app.task(  # type: ignore[untyped-decorator,unused-ignore]
    name="process_cdn_image_job", autoretry_for=(httpx.HTTPError,), retry_backoff=True, max_retries=3
)
def process_cdn_image_job(job_id: str) -> None:
    """Mirrors one image: original and renditions into folders, then its row."""
    started = time.time()
    original = _download(_source_url(job_id))
    _store("originals", original, "bin")
    paths = {f"path_{size}": _store(str(size), data, "webp") for size, data in _renditions(original).items()}
    with engine.begin() as connection:
        connection.execute(
            sa.text("""
                UPDATE cdn_image_jobs
                SET status = 'completed', started_at = to_timestamp(:started), completed_at = clock_timestamp(),
                    bytes_in = :bytes_in, path_256 = :path_256, path_512 = :path_512
                WHERE id = CAST(:id AS uuid)"""),
            {"id": job_id, "started": started, "bytes_in": len(original), **paths},
        )


def _source_url(job_id: str) -> str:
    with engine.connect() as connection:
        url = sa.text("SELECT source_url FROM cdn_image_jobs WHERE id = CAST(:id AS uuid)")
        return str(connection.execute(url, {"id": job_id}).scalar_one())


def _download(url: str) -> bytes:
    response = client.get(url)
    response.raise_for_status()
    return response.content


def _renditions(original: bytes) -> dict[int, bytes]:
    renditions = {}
    with Image.open(BytesIO(original)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    for size in SIZES:
        picture, buffer = upright.copy(), BytesIO()
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", quality=QUALITY, method=METHOD)
        renditions[size] = buffer.getvalue()
    return renditions


def _store(folder: str, data: bytes, suffix: str) -> str:
    digest = hashlib.sha256(data).hexdigest()
    path = media / folder / digest[:2] / f"{digest}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def enqueue() -> None:
    """Puts every queued job on the broker."""
    with engine.connect() as connection:
        for job_id in connection.execute(sa.text("SELECT id FROM cdn_image_jobs WHERE status = 'queued'")).scalars():
            process_cdn_image_job.delay(str(job_id))


if __name__ == "__main__":
    enqueue()
