"""What is measured of the whole at one moment. Health, metrics and alerts are all told from it.

`monitor` measures, `parts` judges. A part that is away never keeps the others from being measured: its own value is
None, or says its problem.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cdn_pipeline.observe.figures import Figures
from cdn_pipeline.observe.overview import Overview
from cdn_pipeline.observe.probes import Delivery
from cdn_pipeline.observe.storage import Storage
from cdn_pipeline.observe.traffic import Traffic
from cdn_pipeline.observe.workers import Workers

# The fields of the vitals whose measurement may be broken.
MEASUREMENTS = ("catalog", "objects", "originals", "overview", "workers", "figures", "delivery", "storage", "traffic")


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One cheap question to a part, and how long the answer took; `problem` says why there was none."""

    milliseconds: float | None
    problem: str | None = None

    @property
    def answered(self) -> bool:
        """Whether the part is there."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Disk:
    """Of the file systems under local stores and the embedded catalog, the fullest. In bytes.

    `total` is what files may take: without what the system reserves for itself.
    """

    folder: str
    total: int
    free: int

    @property
    def used_share(self) -> float:
        """0 to 1."""
        return 1 - self.free / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """The process that measures, and the machine it runs on."""

    started_at: datetime
    uptime: timedelta
    resident_bytes: int
    cpu_seconds: float  # user and system, since its start
    threads: int
    load: float  # of the machine: processes that want to run, mean of a minute


@dataclass(frozen=True, slots=True)
class Vitals:
    """Everything that was measured, as of `at` (UTC; by the catalog's clock, or by this machine's while it is away).

    None while the catalog is away: `overview`, `workers`, `figures`, `storage`, `alerts_firing`. None as well:
    `heartbeat` before the first one, `delivery` before the first probe, `traffic` when Cloudflare is not configured,
    `disk` without a local folder.

    What is None because measuring it failed by an error of ours, and not because somebody is away or slow, is in
    `unmeasurable`: why, by the field's name.
    """

    at: datetime
    catalog: RoundTrip
    objects: RoundTrip
    originals: RoundTrip
    heartbeat: datetime | None  # the last tick of any of Dagster's sensors
    overview: Overview | None
    workers: Workers | None
    figures: Figures | None
    delivery: Delivery | None
    traffic: Traffic | None
    storage: Storage | None
    alerts_firing: Mapping[tuple[str, str], int] | None  # by rule and severity
    disk: Disk | None
    process: Process
    unmeasurable: Mapping[str, str] = field(default_factory=dict)

    @property
    def heartbeat_age(self) -> timedelta | None:
        """How long Dagster's daemon has been silent; None if it was never heard (or the catalog is away)."""
        return None if self.heartbeat is None else max(self.at - self.heartbeat, timedelta(0))

    @property
    def probes_age(self) -> timedelta | None:
        """How long ago published URLs were last probed; None if they never were (or the catalog is away)."""
        return None if self.delivery is None else max(self.at - self.delivery.probed_at, timedelta(0))
