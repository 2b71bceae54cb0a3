"""Who is told: the services that ALERT_URLS names, through apprise. Their URLs hold tokens, and never leave here."""

import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import apprise
from pydantic import SecretStr

from cdn_pipeline.observe.alerts.machine import Message, Severity, still_to_tell
from cdn_pipeline.observe.alerts.messages import Letter, compose
from cdn_pipeline.settings import ConfigurationError

TELL_SECONDS = 10  # for one letter to one receiver; connecting and reading have 4 s each in apprise

# For all letters to all receivers; the last one begins within it. With the 30 s that the sensor measures for, a tick
# stays within the 60 s that Dagster gives it.
TELLING_SECONDS = 18

_TYPES = {
    None: apprise.NotifyType.SUCCESS,
    Severity.INFO: apprise.NotifyType.INFO,
    Severity.WARNING: apprise.NotifyType.WARNING,
    Severity.CRITICAL: apprise.NotifyType.FAILURE,
}

# At level DEBUG it logs URLs with their tokens, and so does urllib3. What goes wrong is in the results.
logging.getLogger("apprise").propagate = False
logging.getLogger("urllib3").setLevel(logging.INFO)

_SHORTEST_SECRET = 6  # characters: what is shorter is a word of some message, or guessed anyway


@dataclass(frozen=True, slots=True)
class Receiver:
    """One of the URLs. `id` tells it apart without giving it away, `name` does so for people."""

    id: str
    name: str
    _url: str = field(repr=False)
    _service: apprise.NotifyBase = field(repr=False)

    def tell(self, letter: Letter) -> str | None:
        """Sends the letter; returns why it was not taken, if it was not."""
        sender = apprise.Apprise()
        sender.add(self._service)
        result = sender.notify(
            title=letter.title,
            body=letter.body,
            notify_type=_TYPES[letter.severity],
            body_format=apprise.NotifyFormat.TEXT,
            timeout=TELL_SECONDS,
        )
        if result:
            return None
        reasons = [entry.message for entry in result.logs()] or [result.status.name.lower()]
        return self._without_secrets(f"{self.name}: {reasons[-1]}")

    def _without_secrets(self, words: str) -> str:
        """The words without any part of the URL: even what stands for the host is a token in some."""
        _, _, rest = self._url.partition("://")
        for part in sorted(re.split(r"[/:@?&=#,]+", rest), key=len, reverse=True):
            if len(part) >= _SHORTEST_SECRET and part in words:
                words = words.replace(part, "…")
        return words


class Receivers:
    """All of them.

    Raises:
        ConfigurationError: a URL is none that apprise knows; the message gives its place and not the URL.
    """

    def __init__(self, urls: SecretStr | None) -> None:
        texts = urls.get_secret_value().split() if urls else []
        self._receivers = [_receiver(text, number) for number, text in enumerate(texts, start=1)]

    @property
    def ids(self) -> frozenset[str]:
        """Empty if there are none."""
        return frozenset(receiver.id for receiver in self._receivers)

    def telling(self) -> "Telling":
        """Begins to tell them something."""
        return Telling(self._receivers)

    def test(self, letter: Letter) -> Mapping[str, str | None]:
        """Sends the letter to each; why it was not taken, or None, by the receiver's name."""
        return {receiver.name: receiver.tell(letter) for receiver in self._receivers}


class Telling:
    """One go at telling: it ends in time, and who did not take one letter gets no further one, for he is away."""

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self._receivers = receivers
        self._ends_at = time.monotonic() + TELLING_SECONDS
        self._problems: dict[str, str] = {}

    @property
    def is_over(self) -> bool:
        """Whether its time is up; what is left is told in the next one."""
        return time.monotonic() >= self._ends_at

    def tell(self, messages: Sequence[Message]) -> Sequence[Mapping[str, str | None]]:
        """Tells each receiver by one letter what he has not heard of it.

        Returns for each message why it was not taken, or None, by the receivers that were to hear of it.
        """
        answers: list[dict[str, str | None]] = [{} for _ in messages]
        for receiver in self._receivers:
            wanted = [n for n, message in enumerate(messages) if still_to_tell(message.alert, {receiver.id})]
            if wanted:
                answer = self._tell(receiver, compose([messages[n] for n in wanted]))
                for n in wanted:
                    answers[n][receiver.id] = answer
        return answers

    def _tell(self, receiver: Receiver, letter: Letter) -> str | None:
        if receiver.id in self._problems:
            return self._problems[receiver.id]
        if self.is_over:
            return f"{receiver.name}: others took all the time"
        problem = receiver.tell(letter)
        if problem:
            self._problems[receiver.id] = problem
        return problem


def _receiver(url: str, number: int) -> Receiver:
    service = apprise.Apprise.instantiate(url)
    if not isinstance(service, apprise.NotifyBase):
        raise ConfigurationError(f"ALERT_URLS: number {number} is no URL that apprise understands")
    name = f"{number} ({service.service_name})"
    return Receiver(hashlib.sha256(url.encode()).hexdigest()[:16], name, url, service)
