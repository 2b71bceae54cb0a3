"""What `cdn-pipeline compare` compares. Apart, because `--help` must not import what compares it."""

from enum import StrEnum


class Metric(StrEnum):
    """What to compare."""

    ALL = "all"
    AVAILABILITY = "availability"
    LATENCY = "latency"
    BYTES = "bytes"
