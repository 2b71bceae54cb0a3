"""Child processes of the demo: started together, stopped together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from cdn_pipeline.settings import ConfigurationError

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0


class ChildFailedError(Exception):
    """A child process ended or never answered; the message has the end of what it printed."""


def python(*arguments: str) -> list[str]:
    """A command that runs this environment's Python."""
    return [sys.executable, *arguments]


def free_port(preferred: int) -> int:
    """The preferred port on loopback if nobody listens there, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def require_free(port: int) -> None:
    """Says at once that a port is taken, instead of a server that nobody reaches.

    Raises:
        ConfigurationError: it is.
    """
    if free_port(port) != port:
        raise ConfigurationError(
            f"port {port} on 127.0.0.1 is taken: end what listens there (`make dev` serves on 8000 as well), "
            "or choose with --port"
        )


@contextmanager
def running(
    command: Sequence[str], log: Path, *, ready_url: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command beside us, its output in `log`, until the block ends.

    Raises:
        ChildFailedError: it ended, or did not answer at `ready_url` in time.
    """
    process = _start(command, log, environment)
    try:
        if ready_url is not None:
            _wait_until_ready(process, ready_url, log)
        yield process
    finally:
        stop(process)


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    # A child inherits an ignored SIGINT (from `cmd &` in a script), and Dagster then ignores SIGTERM as well.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ChildFailedError(f"{process.args!r} ended with status {process.returncode}:\n{tail(log)}")
        try:
            httpx.get(url, timeout=2.0)
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        if _listens(process, httpx.URL(url).port):
            return
        time.sleep(0.1)  # somebody else took the port just now; the process will say so and end
    raise ChildFailedError(f"{url} did not answer within {_READY_SECONDS:.0f} s:\n{tail(log)}")


def _listens(process: subprocess.Popen[bytes], port: int | None) -> bool:
    """Whether the process, or one that it has started, is who listens on the port."""
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid)
        for each in (started, *started.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(at.status == psutil.CONN_LISTEN and at.laddr.port == port for at in each.net_connections("tcp")):
                    return True
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the process to end, and makes it."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
