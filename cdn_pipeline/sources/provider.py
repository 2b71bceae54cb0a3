"""Who can be asked for fresh URLs: user names in, the profiles' pictures or reasons why there are none out.

No vendor here: whoever delivers Instagram's profiles implements `Provider`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cdn_pipeline.sources.instagram import SourceUrl


class Refusal(StrEnum):
    """Why a profile came without pictures; the value is what the catalog stores."""

    PRIVATE = "private"
    GONE = "gone"
    EMPTY = "empty"  # an answer without a profile: it does not exist, or its page was not delivered this time
    BLOCKED = "blocked"  # by Instagram, however often the provider tried
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    UNREADABLE = "unreadable"  # an answer that is no profile, or another one

    @property
    def passes(self) -> bool:
        """Whether the same question may well be answered minutes later."""
        return self not in (Refusal.PRIVATE, Refusal.GONE)


@dataclass(frozen=True, slots=True)
class ProvidedImage:
    """A picture of a profile; `candidates` are its URLs, never empty, in no order."""

    source_type: str
    media_id: str
    candidates: tuple[SourceUrl, ...]


@dataclass(frozen=True, slots=True)
class ProvidedProfile:
    """The pictures that a public profile shows now: observed at the moment at which the answer is yielded."""

    username: str
    images: tuple[ProvidedImage, ...]


@dataclass(frozen=True, slots=True)
class NoProfile:
    """A profile that came without pictures, and why; `detail` holds no secret."""

    username: str
    refusal: Refusal
    detail: str = ""


Answer = ProvidedProfile | NoProfile


class ProviderRefusedError(Exception):
    """The provider serves none of our questions until an operator does something; the message says what.

    Credentials, the subscription, an address, or a kind of question that is no longer offered.
    """


class Provider(Protocol):
    """Somebody who delivers profiles."""

    @property
    def name(self) -> str:
        """What the catalog calls the provider: its budget goes by this name."""

    def fetch(self, usernames: Sequence[str]) -> Iterator[Answer]:
        """Asks for these profiles, each once; yields one answer for each, in the order in which they come.

        Raises:
            ProviderRefusedError: nothing will be answered; what was yielded before stays good.
        """
