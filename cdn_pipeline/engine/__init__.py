"""The stream: due jobs in, outcomes out.

Here belongs what keeps downloads, CPU work and uploads busy at once, each with bounded concurrency and memory, and what
turns whatever happens to an image on its way into one outcome. No SQL of its own (`queue` claims and settles jobs), no
Dagster, no image codecs (`media` has them; `pool` runs them in worker processes).
"""
