"""One host of three fails altogether: how fast the images of the others are, with and without protection per host.

    .venv/bin/python -m benchmarks.hosts [--images 60]

Pictures of 540 px at three loopback hosts (127.0.0.1, .2 and .3; a process of their own), as many at each; those of
the first host expire first, so a run reaches for them before all others. It refuses connections, or accepts them and
says nothing. Catalog on the embedded Postgres, stores in folders, the engine in this process. `Unprotected` is an
engine whose images go to any host at any time: what protection is measured against.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from io import BytesIO
from ipaddress import ip_network
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch
from urllib.parse import urlsplit

import sqlalchemy as sa
from aiohttp import web
from PIL import Image

from cdn_pipeline.catalog.embedded import EmbeddedPostgres
from cdn_pipeline.catalog.sessions import CATALOG_DATABASE, open_demo_database
from cdn_pipeline.collections import INSTAGRAM, SHARDS
from cdn_pipeline.demo.app_database import create_tables
from cdn_pipeline.demo.serving import listening
from cdn_pipeline.engine import mirror as mirror_module
from cdn_pipeline.engine.backlog import OpenGate
from cdn_pipeline.engine.hosts import Hosts
from cdn_pipeline.engine.mirror import Mirror
from cdn_pipeline.queue.due import Selection
from cdn_pipeline.queue.states import Stage
from cdn_pipeline.settings import Settings

FAILING, *WELL = "127.0.0.1", "127.0.0.2", "127.0.0.3"
PICTURES = 20
PICTURE = (540, 540)


class Unprotected(OpenGate):
    """Lets every image go to its host at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    @asynccontextmanager
    async def visit(self, name: str) -> AsyncIterator[None]:
        """Goes."""
        yield


def _pictures() -> list[bytes]:
    """Blurred noise, which costs the codec about as much as photographs do."""
    made = []
    for number in range(PICTURES):
        small = Image.effect_noise((90 + number, 90), 90).convert("RGB")
        buffer = BytesIO()
        small.resize(PICTURE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=88)
        made.append(buffer.getvalue())
    return made


def serve(tell: Connection) -> None:
    """The hosts that are well answer every path; the failing one hangs on one port. Tells the ports."""
    pictures = _pictures()

    async def answer(request: web.Request) -> web.Response:
        # A trailing comment makes every picture another one; decoders stop before it.
        body = pictures[hash(request.path) % PICTURES] + request.path.encode()
        return web.Response(body=body, content_type="image/jpeg")

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    def application() -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        return app

    async def main() -> None:
        async with listening(application(), WELL[0]) as first:
            port = urlsplit(first).port or 0
            async with listening(application(), WELL[1], port):
                hanging = await asyncio.start_server(say_nothing, FAILING, 0)
                tell.send((port, hanging.sockets[0].getsockname()[1]))
                await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def origins() -> Iterator[tuple[int, int]]:
    """The port of the hosts that are well, and that on which the failing one hangs."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(sender,), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.terminate()
        process.join()


def fill(database: sa.Engine, bases: list[str], images: int) -> None:
    """A dozen posts per profile, `images` at each host, those of the first host with the earliest expiry."""
    create_tables(database)
    with database.begin() as connection:
        connection.execute(sa.text("TRUNCATE profiles, posts"))
        for number, base in enumerate(bases):
            expires_at = f"{int(time.time()) + 86_400 * (1 + number):X}"
            values = {"base": base, "images": images, "host": number, "expires_at": expires_at}
            connection.execute(_PROFILES, values | {"profiles": -(-images // 12)})
            connection.execute(_POSTS, values)


_PROFILES = sa.text("""
    INSERT INTO profiles (id, username, updated_at)
    SELECT gen_random_uuid(), 'p' || CAST(:host AS int) || '-' || n, now() FROM generate_series(1, :profiles) n
""")

_POSTS = sa.text("""
    INSERT INTO posts (id, profile_id, media_id, display_url, taken_at, updated_at)
    SELECT gen_random_uuid(), p.id, 'm' || n,
           :base || '/v/t51.2885-15/' || p.username || '_' || n || '_n.jpg?oe=' || :expires_at, now(), now()
    FROM profiles p, generate_series(1, 12) n WHERE p.username LIKE 'p' || CAST(:host AS int) || '-%'
    ORDER BY p.id LIMIT :images
""")


def images_per_second(settings: Settings, gate: Callable[..., Any], others: int) -> float:
    """Of the hosts that are well, from the first claim to their last picture; the run is then stopped."""
    with (
        patch.object(mirror_module, "Hosts", gate),
        patch.object(mirror_module, "PROGRESS_EVERY_SECONDS", 0.5),
        Mirror(settings, f"benchmark {time.monotonic()}", INSTAGRAM) as mirror,
    ):
        list(mirror.discover(SHARDS))
        with closing(mirror.stream(SHARDS, Selection(INSTAGRAM, frozenset(Stage)))) as items:  # type: ignore[type-var]
            for _ in items:
                row = _published(mirror.catalog)
                if row.images >= others:
                    break
        row = _published(mirror.catalog)
    return float(row.images / row.seconds)


def _published(catalog: sa.Engine) -> sa.Row[Any]:
    query = sa.text("""
        SELECT count(*) FILTER (WHERE status = 'completed') AS images,
               extract(epoch FROM max(completed_at) - min(first_started_at)) AS seconds FROM cdn_image_jobs""")
    with catalog.connect() as connection:
        return connection.execute(query).one()


def forget(server: EmbeddedPostgres) -> None:
    """The next run begins with an empty catalog."""
    engine = sa.create_engine(server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE IF EXISTS {CATALOG_DATABASE} WITH (FORCE)"))
    engine.dispose()


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=60, help="at each host")
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory(prefix="cdn-pipeline-hosts-") as name, origins() as (port, hanging):
        var = Path(name)
        var.chmod(0o755)
        allowed = (ip_network("127.0.0.0/8"),)
        settings = Settings(_env_file=None, cdn_pipeline_var_dir=var, download_allowed_networks=allowed)  # type: ignore[call-arg]
        well = [f"http://{host}:{port}" for host in WELL]
        worlds = {"refuses": [f"http://{FAILING}:{port}", *well], "hangs": [f"http://{FAILING}:{hanging}", *well]}
        print("| the third host | images/s of the others | of theirs alone |\n|---|---|---|")
        with EmbeddedPostgres(var / "postgres") as server, open_demo_database(settings) as database:

            def measure(bases: list[str], gate: Callable[..., Any]) -> float:
                forget(server)
                fill(database, bases, images)
                return images_per_second(settings, gate, images * len(WELL))

            alone = [measure(well, Hosts)]
            rates = {}
            for how, bases in worlds.items():
                for gate in (Hosts, Unprotected):
                    rates[how, gate is Hosts] = measure(bases, gate)
                alone.append(measure(well, Hosts))
        mean = sum(alone) / len(alone)
        print(f"| does not exist | {', '.join(f'{rate:.1f}' for rate in alone)} | |")
        for (how, is_protected), rate in rates.items():
            print(f"| {how}{'' if is_protected else ', unprotected'} | {rate:.1f} | {rate / mean:.0%} |")


if __name__ == "__main__":
    main()
