"""Measures against one peer, and keeps the result for docs/performance.md."""

import argparse
from pathlib import Path

from benchmarks.peers import against_celery, against_img2dataset, against_sharp
from benchmarks.peers.installation import default_folder
from benchmarks.report import keep
from benchmarks.throughput import world

PEERS = {"sharp": against_sharp, "img2dataset": against_img2dataset, "celery": against_celery}


def main() -> None:
    """Installs the peer if need be, makes a world, and compares."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers-dir", type=Path, default=default_folder(), help="where peers are installed")
    options = parser.parse_args()
    peer = PEERS[options.peer]
    installed = peer.install(options.peers_dir.resolve())
    command = f"python -m benchmarks.peers {options.peer} --images {options.images} --rounds {options.rounds}"
    with world(options.images, options.shards) as place:
        place.run_from_nothing()  # not counted: the origin makes its pictures
        section = peer.compare(place, installed, options.rounds, command)
    keep(section)


if __name__ == "__main__":
    main()
