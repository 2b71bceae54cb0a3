"""Counts what a run does, per shard. Memory does not grow with the number of images."""

import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Outcome, Verdict

# Percentiles are exact up to this many images per shard and stage; beyond it a uniform sample stands for them.
MAX_SAMPLES = 1000

# They end without a picture, but not because the pipeline did badly.
NOT_IN_RATE = frozenset({FailureKind.SOURCE_GONE, FailureKind.SOURCE_URL_EXPIRED, FailureKind.SIGNATURE_MISMATCH})

_DONE = frozenset({Verdict.PUBLISHED, Verdict.UNCHANGED, Verdict.ADVANCED})


class Samples:
    """A bounded uniform sample of a stream of numbers (reservoir sampling)."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._seen = 0
        self._random = random.Random(0)  # noqa: S311  # a sample, not a secret

    def add(self, value: float) -> None:
        """Adds one number."""
        self._seen += 1
        if len(self._values) < MAX_SAMPLES:
            self._values.append(value)
        elif (place := self._random.randrange(self._seen)) < MAX_SAMPLES:
            self._values[place] = value

    def percentile(self, percent: float) -> float | None:
        """The nearest-rank percentile; None if nothing was added."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(slots=True)
class Tally:
    """What became of the claimed images of a shard, or of a whole run. Each image counts once, by its last outcome.

    (Only an image that takes another identity after it was done, while the run goes on, counts again.)
    """

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    failures: Counter[FailureKind] = field(default_factory=Counter)  # last outcomes that are not done
    attempts_failed: Counter[FailureKind] = field(default_factory=Counter)  # every attempt, retried ones included
    downloaded: int = 0
    renditions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    download_ms: Samples = field(default_factory=Samples)
    transcode_ms: Samples = field(default_factory=Samples)
    upload_ms: Samples = field(default_factory=Samples)
    first_claim: float | None = None  # monotonic seconds
    last_outcome: float | None = None
    # By image: what may still give way to another outcome.
    _unsettled: dict[uuid.UUID, tuple[Verdict, FailureKind | None]] = field(default_factory=dict)

    def claimed(self) -> None:
        """Notes that work began."""
        self.first_claim = self.first_claim or time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Counts a written outcome in place of the image's earlier one, if it had one."""
        self.last_outcome = time.monotonic()
        earlier = self._unsettled.pop(outcome.asset_id, None)
        if earlier is not None:
            self._count(*earlier, step=-1)
        self._count(outcome.verdict, outcome.failure, step=+1)
        if outcome.verdict not in _DONE:
            self._unsettled[outcome.asset_id] = outcome.verdict, outcome.failure
        if outcome.failure is not None:
            self.attempts_failed[outcome.failure] += 1
        self.downloaded += outcome.bytes_in is not None
        self.renditions += len(outcome.renditions)
        self.bytes_in += outcome.bytes_in or 0
        self.bytes_out += outcome.bytes_out or 0
        self._sample(outcome)

    def close(self) -> None:
        """Forgets which images had which outcome: there will be no other."""
        self._unsettled.clear()

    def _count(self, verdict: Verdict, failure: FailureKind | None, *, step: int) -> None:
        self.verdicts[verdict] += step
        if failure is not None:
            self.failures[failure] += step

    def _sample(self, outcome: Outcome) -> None:
        for samples, value in (
            (self.download_ms, outcome.download_ms),
            (self.transcode_ms, outcome.transcode_ms),
            (self.upload_ms, outcome.upload_ms),
        ):
            if value is not None:
                samples.add(value)

    @property
    def images(self) -> int:
        """Images that were claimed and have an outcome."""
        return sum(self.verdicts.values())

    @property
    def completed(self) -> int:
        """Images that are where the run's selection wanted them."""
        return sum(self.verdicts[verdict] for verdict in _DONE)

    @property
    def published(self) -> int:
        """Images whose renditions became current."""
        return self.verdicts[Verdict.PUBLISHED]

    @property
    def unchanged(self) -> int:
        """Images whose bytes were those we have."""
        return self.verdicts[Verdict.UNCHANGED]

    @property
    def not_in_rate(self) -> int:
        """Images that ended gone, expired or released."""
        return self.verdicts[Verdict.RELEASED] + sum(self.failures[kind] for kind in NOT_IN_RATE)

    @property
    def failed(self) -> int:
        """Images that count against the success rate: failed, still retrying, or waiting for a URL that was refused."""
        return self.images - self.completed - self.not_in_rate

    @property
    def success_rate(self) -> float | None:
        """Completed of (completed + failed), 0 to 1; None without any."""
        judged = self.completed + self.failed
        return self.completed / judged if judged else None

    @property
    def seconds(self) -> float:
        """From the first claim to the last written outcome."""
        if self.first_claim is None or self.last_outcome is None:
            return 0.0
        return self.last_outcome - self.first_claim

    @property
    def images_per_second(self) -> float | None:
        """Images with an outcome per second of `seconds`."""
        return self.images / self.seconds if self.seconds > 0 else None

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> Self:
        """The sum of finished shards, without percentiles."""
        total = cls()
        for tally in tallies:
            total.verdicts.update(tally.verdicts)
            total.failures.update(tally.failures)
            total.attempts_failed.update(tally.attempts_failed)
            total.downloaded += tally.downloaded
            total.renditions += tally.renditions
            total.bytes_in += tally.bytes_in
            total.bytes_out += tally.bytes_out
            total.first_claim = _earliest(total.first_claim, tally.first_claim)
            total.last_outcome = max(total.last_outcome or 0, tally.last_outcome or 0) or None
        return total


def _earliest(one: float | None, other: float | None) -> float | None:
    known = [moment for moment in (one, other) if moment is not None]
    return min(known, default=None)
