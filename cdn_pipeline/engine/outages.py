"""When a store or the catalog is away: the stream waits, and then the run ends with everything unfinished still due."""

import time
from dataclasses import dataclass
from datetime import timedelta

from cdn_pipeline.failures import FailureKind
from cdn_pipeline.queue.outcomes import Outcome, Verdict

CATALOG_PATIENCE = timedelta(seconds=60)  # a restart takes seconds, a managed failover up to a minute
STORE_PATIENCE_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Outage(Exception):
    """Something that all images need is away for longer than a run waits; the message says what to do."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}. {kind.advice}")
        self.kind = kind


@dataclass(slots=True)
class StoreWatch:
    """Whether the stores answer, by what became of images.

    While they do not, one image is tried after 1, 2, 4 … 30 s: the first that is stored ends it. One that ends without
    any store, because of its source, tells nothing, and makes room for one more.
    """

    patience_seconds: float = STORE_PATIENCE_SECONDS
    outage: Outage | None = None
    """Set when the stores have been away for `patience_seconds`."""
    _away_since: float | None = None
    _paused_until: float = 0.0
    _pause_seconds: float = _FIRST_PAUSE_SECONDS
    _room: int = 1  # images at once while the stores are away

    def places(self, usual: int) -> int:
        """How many images may be in work now, of the usual number."""
        if self._away_since is None:
            return usual
        return 0 if self._is_paused else min(self._room, usual)

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def note(self, outcome: Outcome) -> None:
        """Learns from what became of an image."""
        if outcome.failure is FailureKind.STORE_UNAVAILABLE:
            self._note_failure(outcome)
        elif outcome.objects or outcome.verdict in (Verdict.PUBLISHED, Verdict.ADVANCED):
            self._away_since, self._pause_seconds = None, _FIRST_PAUSE_SECONDS
        else:
            self._room += 1

    def _note_failure(self, outcome: Outcome) -> None:
        now = time.monotonic()
        self._room = 1
        if self._away_since is None:
            self._away_since = now - outcome.total_ms / 1000  # since when it had no answer
        if now - self._away_since > self.patience_seconds:
            self.outage = Outage(FailureKind.STORE_UNAVAILABLE, outcome.detail)
        if not self._is_paused:  # all that were in hand fail together
            self._paused_until = now + self._pause_seconds
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
