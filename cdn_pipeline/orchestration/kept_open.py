"""What sensors keep open from tick to tick."""

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from cdn_pipeline.settings import Settings

_T = TypeVar("_T")


class KeptOpen(Generic[_T]):
    """Opened at the first tick, and kept until the code server ends or the environment names something else.

    Opening takes half a second where nobody else holds the embedded Postgres open; a tick takes 20 ms.
    """

    def __init__(self, open_it: Callable[["Settings"], AbstractContextManager[_T]]) -> None:
        self._open_it = open_it
        self._lock = threading.Lock()  # "Test sensor" in the UI ticks beside the daemon
        self._opened: tuple[Settings, _T] | None = None
        self._stack = ExitStack()
        atexit.register(self.close)

    @contextmanager
    def in_use(self) -> Iterator[_T]:
        """What is open, for one tick at a time.

        Raises:
            ConfigurationError: the environment is incomplete or contradicts itself.
            DatabaseUnreachableError: a database does not answer; everything is opened anew the next time.
        """
        from cdn_pipeline.engine.due_work import DatabaseUnreachableError
        from cdn_pipeline.settings import load_settings

        with self._lock:
            settings = load_settings()
            if self._opened is None or self._opened[0] != settings:
                self.close()
                self._opened = settings, self._stack.enter_context(self._open_it(settings))
            try:
                yield self._opened[1]
            except DatabaseUnreachableError:
                self.close()
                raise

    def close(self) -> None:
        """Closes everything. It is opened again when it is asked for."""
        self._opened = None
        self._stack.close()
