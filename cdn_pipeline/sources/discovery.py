"""From what a source row says now and what the catalog knows to what has changed. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cdn_pipeline.sources.instagram import SourceUrl

# A URL that died longer ago than this is not worth a request; clocks are nowhere further apart.
CLOCK_TOLERANCE = timedelta(hours=1)

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)

# Best rank first; an image's URLs are few (HD and standard, display and thumbnail), so more would be an error.
MAX_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class ImageKey:
    """What an image is unique by."""

    source_type: str
    source_id: str
    media_id: str


@dataclass(frozen=True, slots=True)
class ImageReference:
    """One sighting of an image in a source row; `candidates` are its URLs, best rank first, never empty."""

    key: ImageKey
    owner_id: str
    shard: str
    taken_at: datetime | None
    candidates: tuple[SourceUrl, ...]
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What the catalog knows of an image."""

    identity: str
    rank: int
    candidates: tuple[SourceUrl, ...]  # the current URL first
    observed_at: datetime
    original_identity: str | None
    original_rank: int | None
    waiting: bool  # pending without an open job: a fresh URL reopens it
    failed: bool  # permanently: only another identity reopens it
    version: str  # another one whenever it was written


class Change(StrEnum):
    """What a sighting means."""

    NEW = "new"
    CHANGED = "changed"  # another picture, or a better rank of the same one
    RESIGNED = "re-signed"  # the same picture under another URL
    UNCHANGED = "unchanged"
    OUTDATED = "outdated"  # an older observation than the one we have


MOVED = frozenset({Change.CHANGED, Change.RESIGNED})  # what is known of the image is overwritten


@dataclass(frozen=True, slots=True)
class Sighting:
    """A reference, compared: what has changed, which URLs are current now, whether the image becomes due."""

    reference: ImageReference
    change: Change
    candidates: tuple[SourceUrl, ...]
    alive: bool  # the best of them may still answer
    opens_job: bool

    @property
    def best(self) -> SourceUrl:
        """The URL to download first."""
        return self.candidates[0]


def compare(reference: ImageReference, known: KnownImage | None, now: datetime) -> Sighting:
    """Says what a sighting changes.

    Same identity: the later expiry wins, per rank; of the same expiry, the later observation. Another identity: the
    later observation wins, so an old row never overwrites what was just delivered.
    """
    seen = rank_candidates(reference.candidates, now)
    if known is not None and seen[0].identity == known.identity:
        return _compare_same_picture(reference, known, seen, now)
    if known is not None and reference.observed_at <= known.observed_at:
        return _nothing_new(reference, Change.OUTDATED, known, now)
    alive = is_alive(seen[0], now)
    return Sighting(reference, Change.NEW if known is None else Change.CHANGED, seen, alive, opens_job=alive)


def _nothing_new(reference: ImageReference, change: Change, known: KnownImage, now: datetime) -> Sighting:
    alive = is_alive(known.candidates[0], now)
    return Sighting(reference, change, known.candidates, alive, opens_job=False)


def _compare_same_picture(
    reference: ImageReference, known: KnownImage, seen: tuple[SourceUrl, ...], now: datetime
) -> Sighting:
    known_urls = {candidate.url for candidate in known.candidates}
    later_first = [seen, known.candidates] if reference.observed_at > known.observed_at else [known.candidates, seen]
    current = rank_candidates([*later_first[0], *later_first[1]], now, identity=known.identity)
    if all(candidate.url in known_urls for candidate in current):
        return _nothing_new(reference, Change.UNCHANGED, known, now)
    alive = is_alive(current[0], now)
    rank_we_have = known.original_rank if known.original_identity == known.identity else None
    better = rank_we_have is not None and current[0].rank > rank_we_have and current[0].url not in known_urls
    if better and not known.failed:
        return Sighting(reference, Change.CHANGED, current, alive, opens_job=alive)
    return Sighting(reference, Change.RESIGNED, current, alive, opens_job=known.waiting and alive)


def rank_candidates(
    candidates: Sequence[SourceUrl], now: datetime, *, identity: str | None = None
) -> tuple[SourceUrl, ...]:
    """Best rank first; of equal ranks of one picture the URL that lives longest; dead ones only if all are dead.

    URLs of `identity`, if it is given, come before all others. Of URLs that live equally long the first is taken.
    """
    longest_lived: dict[tuple[str, int], SourceUrl] = {}
    for candidate in candidates:
        slot = candidate.identity, candidate.rank
        known = longest_lived.get(slot)
        if known is None or _lifetime(candidate, now) > _lifetime(known, now):
            longest_lived[slot] = candidate
    ranked = sorted(
        longest_lived.values(),
        key=lambda candidate: (identity is not None and candidate.identity != identity, -candidate.rank),
    )
    living = [candidate for candidate in ranked if is_alive(candidate, now)]
    return tuple((living or ranked)[:MAX_CANDIDATES])


def is_alive(candidate: SourceUrl, now: datetime) -> bool:
    """Whether the URL may still answer, by its own expiry."""
    return candidate.expires_at is None or candidate.expires_at > now - CLOCK_TOLERANCE


def _lifetime(candidate: SourceUrl, now: datetime) -> tuple[bool, datetime]:
    # Beside a signed URL of the same picture, one without expiry has most likely lost its signature: a column too
    # short cuts off the end. Were it taken to live for ever, no fresh URL would ever heal the image.
    return is_alive(candidate, now), candidate.expires_at or _BEFORE_ALL
