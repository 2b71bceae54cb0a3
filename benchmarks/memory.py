"""A run against its number of shards, and of images: peak memory, and what a run costs that finds nothing to do.

    .venv/bin/python -m benchmarks.memory [--images 1000] [--rounds 3]

Small pictures (240 px) on a loopback origin, everything else as in production: the Dagster job in a process of its own,
catalog on the embedded Postgres, originals and renditions in folders. The images of each world lie in so many shards,
and the run is of these: first with all images due, then idle, again over the same shards. One world more has ten times
as many images, in all shards.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import sqlalchemy as sa
from aiohttp import web
from PIL import Image

from benchmarks.jobs import Watched, run_job
from benchmarks.report import Figure, Section, keep
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, open_demo_database
from cdn_pipeline.collections import SHARD_COUNT, SHARDS
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline.settings import Settings

SHARD_COUNTS = (1, 8, SHARD_COUNT)
MORE_IMAGES = 10  # times as many
DOES_NOT_GROW = 1.1  # most by least: what peaks differ by between two runs of the same world

World = tuple[int, int]
"""Images, and the shards that they lie in."""


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


def fill(database: sa.Engine, images: int, shards: int, base_url: str) -> None:
    """Profiles without avatars in the first shards, each with twelve posts."""
    create_tables(database)
    with database.begin() as connection:
        connection.execute(_PROFILES, {"profiles": -(-images // 12), "first_bytes": shards * 256 // SHARD_COUNT})
        connection.execute(_POSTS, {"base": f"{base_url}/v/t51.2885-15/", "images": images})


# The first byte of an id says the shard.
_PROFILES = sa.text("""
    INSERT INTO profiles (id, username, updated_at)
    SELECT CAST(lpad(to_hex(n % :first_bytes), 2, '0') || substr(gen_random_uuid()::text, 3) AS uuid), 'p' || n, now()
    FROM generate_series(1, :profiles) n
""")

_POSTS = sa.text("""
    INSERT INTO posts (id, profile_id, media_id, display_url, taken_at, updated_at)
    SELECT gen_random_uuid(), p.id, 'm' || n, :base || p.username || '_' || n || '_n.jpg', now(), now()
    FROM profiles p, generate_series(1, 12) n ORDER BY n, p.id LIMIT :images
""")


def measure(images: int, shards: int) -> tuple[Watched, Watched]:
    """A run of a world of its own with all images due, and the next, which is idle."""
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-memory-") as name:
        var = Path(name)
        var.chmod(0o755)
        settings = Settings(_env_file=None, cdn_pipeline_var_dir=var)  # type: ignore[call-arg]
        with open_demo_database(settings) as database, in_thread(listening(pictures())) as base_url:
            fill(database, images, shards, base_url)
            full, idle = (run_job(var, last=SHARDS[shards - 1]) for _ in range(2))
            published = _published(database)
    if (full.exit_status, idle.exit_status, published) != (0, 0, images):
        sys.exit(f"{published} of {images} published, exit statuses {full.exit_status} and {idle.exit_status}")
    return full, idle


def _published(database: sa.Engine) -> int:
    catalog = sa.create_engine(database.url.set(database=CATALOG_DATABASE))
    with catalog.connect() as connection:
        count = connection.scalar(sa.text("SELECT count(cdn_url_512) FROM cdn_image_urls"))
    catalog.dispose()
    return count or 0


def figures(runs: dict[World, list[tuple[Watched, Watched]]]) -> list[Figure]:
    """Memory by world and how it grows, then what an idle run costs."""
    peaks = {world: _peaks(world, [full for full, _ in pairs]) for world, pairs in runs.items()}
    idle = {world: [idle for _, idle in pairs] for world, pairs in runs.items()}
    fewest, *_, most = SHARD_COUNTS
    images, more = min(runs)[0], max(runs)
    few, many = (images, fewest), (images, most)
    return [
        *(figure for of_world in peaks.values() for figure in of_world),
        _growth(f"peak memory, {most} shards ÷ {fewest}", peaks[many][-1], peaks[few][-1]),
        _growth(f"peak memory, {more[0]:,} images ÷ {images:,}", peaks[more][-1], peaks[many][-1]),
        *(figure for (_, shards) in (few, many) for figure in _idle(shards, idle[images, shards])),
        Figure(
            "each further shard of an idle run",
            tuple(
                1000 * (over_many.seconds - over_few.seconds) / (most - fewest)
                for over_many, over_few in zip(idle[many], idle[few], strict=True)
            ),
            "ms",
            0,
        ),
    ]


def _peaks(world: World, runs: Sequence[Watched]) -> list[Figure]:
    where = "{:,} images in {} {}".format(*world, "shard" if world[1] == 1 else "shards")
    parts = {"run": "of the run", "workers": "of its workers", "all": "together"}
    return [
        Figure(f"peak memory {words}, {where}", tuple(run.peaks[part] for run in runs), "MB", 0)
        for part, words in parts.items()
    ]


def _growth(name: str, above: Figure, below: Figure) -> Figure:
    return Figure(
        name, tuple(one / other for one, other in zip(above.values, below.values, strict=True)), at_most=DOES_NOT_GROW
    )


def _idle(shards: int, runs: Sequence[Watched]) -> list[Figure]:
    where = f"an idle run over {shards} {'shard' if shards == 1 else 'shards'}"
    return [
        Figure(where, tuple(run.seconds for run in runs), "s", 1),
        Figure(f"{where}, CPU", tuple(run.run_cpu + run.workers_cpu for run in runs), "s", 1),
    ]


def run(images: int, rounds: int) -> None:
    """Measures all worlds in turn, and keeps the section."""
    worlds = [*((images, count) for count in SHARD_COUNTS), (MORE_IMAGES * images, SHARD_COUNT)]
    runs: dict[World, list[tuple[Watched, Watched]]] = defaultdict(list)
    for _ in range(rounds):
        for world in worlds:
            full, idle = measure(*world)
            runs[world].append((full, idle))
            print(f"{world}: {full.peaks}, {full.seconds:.0f} s; idle {idle.seconds:.1f} s", flush=True)
    keep(
        Section(
            name="memory",
            title="A run against its shards",
            command=f".venv/bin/python -m benchmarks.memory --images {images} --rounds {rounds}",
            figures=figures(runs),
            notes=[
                "Peaks are of the run's process and of its workers; pages that they share count once. There are "
                f"{SHARD_COUNT} shards, so that is what a run has at most.",
                "An idle run reads all source rows of its shards again and finds nothing new and nothing due.",
            ],
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    run(arguments.images, arguments.rounds)
