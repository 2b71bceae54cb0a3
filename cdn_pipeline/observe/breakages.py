"""What cannot be measured because something of ours is broken: kept in words, and logged once per kind."""

import logging
import threading
from collections.abc import Mapping

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import is_away
from cdn_pipeline.settings import ConfigurationError
from cdn_pipeline.store.objects import StoreUnavailable

_log = logging.getLogger(__name__)

_LONGEST_WORDS = 200  # characters: some errors quote what they stumbled over

_ABSENCES = (
    OSError,  # timeouts are among them
    sa.exc.OperationalError,  # so is a statement that took too long
    sa.exc.TimeoutError,
    StoreUnavailable,
    ConfigurationError,
)


def is_absence(error: BaseException) -> bool:
    """Whether the error says that somebody is away, slow or refuses us: asking again may help, or mending his side."""
    return isinstance(error, _ABSENCES) or is_away(error)


def in_words(error: BaseException) -> str:
    """What went wrong, in one line; of a database's error neither the statement nor its values."""
    told = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error
    return " ".join(str(told).split()) or type(told).__name__


class Breakages:
    """Of several measurements those that are broken, until they are made again; several threads may note them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._words: dict[str, str] = {}
        self._logged: dict[str, type[BaseException]] = {}

    def note(self, measurement: str, error: BaseException) -> str:
        """Keeps the error, which is no absence, and returns it in words; the first of its kind is logged."""
        words = f"could not be measured: {type(error).__name__}: {in_words(error)[:_LONGEST_WORDS]}"
        with self._lock:
            is_news = self._logged.get(measurement) is not type(error)
            self._words[measurement], self._logged[measurement] = words, type(error)
        if is_news:
            _log.error("%s could not be measured", measurement, exc_info=error)
        return words

    def forget(self, measurement: str) -> None:
        """It was measured."""
        with self._lock:
            self._words.pop(measurement, None)
            self._logged.pop(measurement, None)

    def words(self) -> Mapping[str, str]:
        """Why each that is broken could not be measured, by its name."""
        with self._lock:
            return dict(self._words)
