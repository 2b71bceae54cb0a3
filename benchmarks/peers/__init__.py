"""Peers: what one would pick instead of this project, on the same work, on the same machine, round by round beside it.

    python -m benchmarks.peers sharp|img2dataset|celery --images 600 --rounds 3

A peer is installed by its benchmark, from its registry, at the exact versions that the lock files here name, into a
folder outside the project's environment (`--peers-dir`). Nothing of a peer is imported by the project:
`celery_tasks.py` and `sharp.mjs` are run by the peer's own interpreter, and import nothing of ours.
"""
