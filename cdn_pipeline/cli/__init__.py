"""The command line: `cdn-pipeline --help`.

Here belong options, words and colours: each command reads its options, calls what does the work, and tells the result.
No SQL and no policy. Commands import what they need when they are called, so that `--help` answers at once.
"""

import signal
from types import FrameType

from cdn_pipeline.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """The console script. SIGTERM ends a command in order, as Ctrl-C does, so that it leaves no process behind."""
    signal.signal(signal.SIGTERM, _end)
    app()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
