"""What a check finds."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a part of the deployment is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as well or as safely as it could
    FAILED = "failed"
    SKIPPED = "skipped"  # not looked at, for the reason that is told


@dataclass(frozen=True, slots=True)
class Finding:
    """What is (`words`), what to do about it (`cure`), and lines for that which are ready to paste. No secrets."""

    state: State
    words: str
    cure: str = ""
    paste: tuple[str, ...] = ()


def ok(words: str) -> Finding:
    """All is well."""
    return Finding(State.OK, words)


def warning(words: str, cure: str, *paste: str) -> Finding:
    """It works, but."""
    return Finding(State.WARNING, words, cure, paste)


def failed(words: str, cure: str, *paste: str) -> Finding:
    """It does not work."""
    return Finding(State.FAILED, words, cure, paste)


def skipped(because: str) -> Finding:
    """Nobody looked."""
    return Finding(State.SKIPPED, because)
