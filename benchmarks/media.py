"""`GET …/media` against a route that selects one row by its primary key, through the same pool of the same process.

    .venv/bin/python -m benchmarks.media [--images 1000000] [--seconds 8] [--rounds 3]

Two catalogs on one embedded Postgres, of 10,000 images and of `--images`, 10 images a profile; an API process for each
(uvicorn as `cdn-pipeline serve` runs it, with the comparison's route added), and a client process. Random profiles.
First at saturation (16 requests at once), catalogs and routes in turn; then at a fifth of what each route gave, sent at
fixed times, and measured from then. Prints the query's plan as well, and what a row takes.
"""

import argparse
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa
import uvicorn

from benchmarks.big_catalog import IMAGES_PER_PROFILE, fill, profile_id
from benchmarks.load import measure
from cdn_pipeline.api.app import create_app
from cdn_pipeline.api.profile_media import IMAGES_OF_PROFILES, query_values
from cdn_pipeline.api.serving import Served
from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.collections import INSTAGRAM
from cdn_pipeline.demo.processes import free_port, python, running
from cdn_pipeline.settings import load_settings

SMALL = 10_000
URLS = 5_000  # different ones in a row: enough to leave no page warm by accident


def serve(port: int) -> None:
    """The API with one route more, until it is terminated."""
    settings = load_settings()
    app = create_app(settings)

    @app.get("/by-primary-key/{asset_id}")
    def by_primary_key(serving: Served, asset_id: uuid.UUID) -> dict[str, str]:
        row = serving.read(lambda on: on.execute(_BY_PRIMARY_KEY, {"id": asset_id}).one())
        return {"owner_id": row.owner_id, "processing_status": row.processing_status}

    uvicorn.run(app, host="127.0.0.1", port=port, log_config=None, access_log=False)


_BY_PRIMARY_KEY = sa.text("SELECT owner_id, processing_status FROM cdn_image_assets WHERE id = :id")


@contextmanager
def _serving(catalog_url: str, folder: Path) -> Iterator[str]:
    port = free_port(0)
    environment = {
        "CATALOG_DATABASE_URL": catalog_url,
        "SOURCE_DATABASE_URL": catalog_url,
        "CDN_PIPELINE_VAR_DIR": str(folder),
    }
    command = python("-m", "benchmarks.media", "--serve", str(port))
    base_url = f"http://127.0.0.1:{port}"
    with running(command, folder.with_suffix(".log"), ready_url=f"{base_url}/livez", environment=environment):
        yield base_url


@contextmanager
def _catalog(server: EmbeddedPostgres, images: int) -> Iterator[sa.Engine]:
    name = f"catalog_{images}"
    server.ensure_database(name)
    engine = sa.create_engine(server.url(name))
    migrate(engine, "http://127.0.0.1:8000")
    started = time.perf_counter()
    fill(engine, images)
    print(f"a catalog of {images:,} images, made in {time.perf_counter() - started:.0f} s", flush=True)
    yield engine
    engine.dispose()


def _urls(engine: sa.Engine, base_url: str, images: int) -> dict[str, list[str]]:
    """By route."""
    generator = random.Random(0)
    profiles = [profile_id(generator.randrange(images // IMAGES_PER_PROFILE)) for _ in range(URLS)]
    with engine.connect() as connection:
        ids = connection.scalars(sa.text("SELECT id FROM cdn_image_assets ORDER BY random() LIMIT :n"), {"n": URLS})
        by_primary_key = [f"{base_url}/by-primary-key/{each}" for each in ids]
    return {
        "media": [f"{base_url}/api/v1/creators/ig/{each}/media" for each in profiles],
        "primary key": by_primary_key,
    }


def run(images: int, seconds: float, rounds: int) -> None:
    """Prints rates and their ratios, then latencies at a fifth of the rates."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
        urls: dict[tuple[int, str], list[str]] = {}
        for size in (SMALL, images):
            engine = stack.enter_context(_catalog(server, size))
            base_url = stack.enter_context(_serving(server.url(f"catalog_{size}"), folder / str(size)))
            for route, some in _urls(engine, base_url, size).items():
                urls[size, route] = some
                measure(some, 2)
        rates: dict[tuple[int, str], list[float]] = {key: [] for key in urls}
        for _ in range(rounds):
            for key, some in urls.items():
                load = measure(some, seconds)
                rates[key].append(load.rate)
                print(f"{key[0]:>9,} images, {key[1]:<11} {load.rate:7.0f}/s {dict(load.statuses)}", flush=True)
        for size in (SMALL, images):
            _print_ratio(f"media / primary key at {size:,} images", rates[size, "media"], rates[size, "primary key"])
        _print_ratio(f"media at {images:,} / at {SMALL:,} images", rates[images, "media"], rates[SMALL, "media"])
        p99 = {}
        for route in ("media", "primary key"):
            rate = statistics.median(rates[images, route]) / 5
            load = measure(urls[images, route], 2 * seconds, rate=rate)
            p99[route] = load.percentile(99)
            print(
                f"{route} at {rate:.0f}/s: p50 {load.percentile(50):.1f}, p95 {load.percentile(95):.1f}, "
                f"p99 {p99[route]:.1f} ms of {len(load.milliseconds)}"
            )
        print(f"p99, media / primary key: {p99['media'] / p99['primary key']:.2f}")
        _print_plan(engine)
        _print_sizes(engine, images)


def _print_ratio(what: str, above: list[float], below: list[float]) -> None:
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    print(f"{what}: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


def _print_plan(engine: sa.Engine) -> None:
    query = sa.text(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {IMAGES_OF_PROFILES.text}")
    with engine.connect() as connection:
        for line in connection.scalars(query, query_values(INSTAGRAM, [profile_id(1)], 12)):
            print(line)


def _print_sizes(engine: sa.Engine, images: int) -> None:
    with engine.connect() as connection:
        for row in connection.execute(_SIZES):
            print(f"{row.relname}, bytes an image: rows {row.rows / images:.0f}, indexes {row.indexes / images:.0f}")


_SIZES = sa.text("""
    SELECT relname, pg_table_size(oid) AS rows, pg_indexes_size(oid) AS indexes FROM pg_class
    WHERE relname IN ('cdn_image_assets', 'cdn_image_jobs', 'cdn_image_renditions') ORDER BY relname
""")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        run(arguments.images, arguments.seconds, arguments.rounds)
