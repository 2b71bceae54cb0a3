"""Memory of a run against its number of images: peak of the run's process and of its workers.

    .venv/bin/python -m benchmarks.memory [1000 10000]

Small pictures (240 px) on a loopback origin, everything else as in production: the Dagster job in a process of its own,
catalog on the embedded Postgres, originals and renditions in folders.
"""

import sys
import tempfile
from io import BytesIO
from pathlib import Path

import sqlalchemy as sa
from aiohttp import web
from PIL import Image

from benchmarks.jobs import run_job
from cdn_pipeline.catalog.sessions import DEMO_DATABASE, open_demo_database
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.settings import Settings


def picture() -> bytes:
    """A noisy JPEG of 240 px."""
    buffer = BytesIO()
    Image.effect_noise((240, 240), 60).convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def pictures() -> web.Application:
    """An origin that answers every path with a picture of its own."""
    body = picture()

    async def answer(request: web.Request) -> web.Response:
        # A trailing comment makes every picture another one; decoders stop before it.
        return web.Response(body=body + request.path.encode(), content_type="image/jpeg")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app


def fill(database: sa.Engine, images: int, base_url: str) -> None:
    """Profiles without avatars, each with twelve posts."""
    create_tables(database)
    with database.begin() as connection:
        connection.execute(
            sa.text("""
                INSERT INTO profiles (id, username, updated_at)
                SELECT gen_random_uuid(), 'p' || n, now() FROM generate_series(1, :profiles) n"""),
            {"profiles": -(-images // 12)},
        )
        connection.execute(
            sa.text("""
                INSERT INTO posts (id, profile_id, media_id, display_url, taken_at, updated_at)
                SELECT gen_random_uuid(), p.id, 'm' || n, :base || p.username || '_' || n || '_n.jpg', now(), now()
                FROM profiles p, generate_series(1, 12) n ORDER BY p.id LIMIT :images"""),
            {"base": f"{base_url}/v/t51.2885-15/", "images": images},
        )


def measure(images: int) -> None:
    """One size, in a world of its own."""
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-memory-") as name:
        var = Path(name)
        var.chmod(0o755)
        settings = Settings(_env_file=None, cdn_pipeline_var_dir=var)  # type: ignore[call-arg]
        with open_demo_database(settings) as database, in_thread(listening(pictures())) as base_url:
            fill(database, images, base_url)
            watched = run_job(var)
            published = _published(database)
        peaks = watched.peaks
        print(
            f"{images:>7} images: run {peaks['run']:.0f} MB, workers {peaks['workers']:.0f} MB, together "
            f"{peaks['all']:.0f} MB at most; {published} published in {watched.seconds:.0f} s, "
            f"exit status {watched.exit_status}"
        )


def _published(database: sa.Engine) -> int:
    catalog = sa.create_engine(database.url.set(database="cdn_catalog"))
    assert database.url.database == DEMO_DATABASE
    with catalog.connect() as connection:
        count = connection.scalar(sa.text("SELECT count(cdn_url_512) FROM cdn_image_urls"))
    catalog.dispose()
    return count or 0


if __name__ == "__main__":
    for size in [int(argument) for argument in sys.argv[1:]] or [1000, 10000]:
        measure(size)
