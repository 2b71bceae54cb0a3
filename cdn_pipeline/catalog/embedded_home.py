"""Where the embedded Postgres lives: its folders, its socket, and the commands that run there.

No parent folder is ever opened to the account that runs Postgres for root: what that account cannot reach, lives
elsewhere.
"""

import hashlib
import logging
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cdn_pipeline.catalog.embedded_programs import (
    MAJOR_VERSION,
    OWN_SERVER,
    SYSTEM_FOLDER,
    Account,
    EmbeddedPostgresError,
    make_public_folder,
    programs_for,
)

logger = logging.getLogger(__name__)

SOCKET_NAME = ".s.PGSQL.5432"

_SHORT_FOLDER = Path("/tmp")  # noqa: S108  not tempfile.gettempdir(): all processes must agree, whatever their TMPDIR
_SOCKET_PATH_BYTES = 103  # sun_path has 104 bytes on macOS and 108 on Linux, the closing NUL included
_LOG_BYTES = 10_000_000  # a longer log is set aside at the next start
_NOTE = "WHERE_THE_DATA_IS.txt"  # first line: the folder; the rest is for whoever looks for the data
_OTHER_FOLDER = "or set CDN_PIPELINE_VAR_DIR to another folder"


class Progress:
    """Says when it is time to tell the log that something long is still going on: every five seconds."""

    _SECONDS = 5.0

    def __init__(self) -> None:
        self._next = time.monotonic() + self._SECONDS

    def is_due(self) -> bool:
        """Whether the last report is long enough ago; True counts as one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._SECONDS
        return True


@dataclass(frozen=True, slots=True)
class PostgresHome:
    """The folder of one embedded Postgres, and the account it runs as (`None`: our own)."""

    data_root: Path
    folder: Path
    account: Account | None

    @classmethod
    def of(cls, data_root: Path) -> "PostgresHome":
        """The home for `data_root`: that folder itself, unless root's helper account cannot reach it.

        Data that exist decide: they are never left behind for an empty database elsewhere.
        """
        if os.geteuid() != 0:
            return cls(data_root, data_root, None)
        elsewhere = _noted_place(data_root) or SYSTEM_FOLDER / f"{_digest(data_root)}-{secrets.token_hex(4)}"
        for folder in (data_root, elsewhere):
            if _is_initialised(folder / "data"):
                return cls(data_root, folder, _owner_of(folder / "data"))
        nobody = Account.nobody()
        return cls(data_root, data_root if nobody.reaches(data_root) else elsewhere, nobody)

    @property
    def data(self) -> Path:
        """The Postgres data directory."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "postgres.log"

    @property
    def socket_folder(self) -> Path:
        """Where the server's Unix socket is: `run`, unless that path does not fit a socket address.

        libpq takes a comma for the end of a host, so a path with one does not fit either.
        """
        usual = self.folder / "run"
        fits = len(os.fsencode(usual / SOCKET_NAME)) <= _SOCKET_PATH_BYTES and "," not in str(usual)
        return usual if fits else _SHORT_FOLDER / f"cdn_pipeline-{_digest(self.folder)}"

    def settle(self) -> None:
        """Makes the folders that a server and its clients meet in. Existing ones are checked, so call it every time.

        Raises:
            EmbeddedPostgresError: somebody else's folder is where the socket belongs.
        """
        if self.folder != self.data_root:
            self._settle_elsewhere()
        self._secure_socket_folder()

    def prepare(self) -> None:
        """Makes what a start needs: the log and the data directory.

        Raises:
            EmbeddedPostgresError: the data directory cannot be used, or not be made.
        """
        if self.account and not self.account.reaches(self.folder):
            raise EmbeddedPostgresError(
                f"User '{self.account}', who runs the embedded Postgres on {self.data} for root, cannot enter "
                f"{self.folder} (any more): open the way for that user, {_OTHER_FOLDER}, {OWN_SERVER}."
            )
        self._prepare_log()
        if _is_initialised(self.data):
            self._check_version()
        else:
            self._initialise()

    def run(self, program: str, *arguments: str) -> None:
        """Runs one of Postgres' programs to its end, in the home's folder and as its account, however long it takes.

        Raises:
            EmbeddedPostgresError: it failed.
        """
        with tempfile.TemporaryFile() as output:
            with subprocess.Popen(  # noqa: S603  programs of the wheel, arguments of ours
                [programs_for(self.account) / program, *arguments],
                cwd=self.folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
            ) as process:
                try:
                    self._wait_for(process, program)
                except BaseException:
                    process.terminate()
                    raise
            if process.returncode:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                raise EmbeddedPostgresError(self._failure(program, said))

    def _wait_for(self, process: subprocess.Popen[bytes], program: str) -> None:
        progress = Progress()
        while process.returncode is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            if progress.is_due():
                logger.warning("%s is at work in %s; the log there says: %s", program, self.folder, self._log_tail(1))

    def _settle_elsewhere(self) -> None:
        """Makes the home outside of `data_root`, and leaves a note where somebody will look for the data."""
        for folder in (self.folder.parent, self.folder):
            make_public_folder(folder)
        note = self.data_root / _NOTE
        if note.exists():
            return
        logger.warning(
            "User '%s' cannot reach %s: the embedded Postgres keeps its data in %s",
            self.account,
            self.data_root,
            self.data,
        )
        note.write_text(
            f"{self.folder}\n"
            f"The embedded Postgres of this folder keeps its data there,\n"
            f"because root started it and user '{self.account}', who runs it, could not reach this folder.\n"
        )

    def _secure_socket_folder(self) -> None:
        """Authentication is `trust`, so only the account (and root) may enter the socket's folder."""
        folder = self.socket_folder
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        trusted = {os.geteuid(), self.account.uid if self.account else os.geteuid()}
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in trusted:
            raise EmbeddedPostgresError(
                f"{folder}, where the socket of the embedded Postgres belongs, is not a folder of ours: "
                f"remove it, {_OTHER_FOLDER}."
            )
        folder.chmod(0o700)
        self._give(folder)

    def _prepare_log(self) -> None:
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.rename(self.log.with_suffix(".log.1"))
        self.log.touch(mode=0o600)
        self._give(self.log)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text(errors="replace").strip()
        if found != MAJOR_VERSION:
            raise EmbeddedPostgresError(
                f"{self.data} was written by Postgres {found}, the embedded one is Postgres {MAJOR_VERSION}: dump it "
                f"with pg_dumpall of version {found}, move it away and load the dump, {_OTHER_FOLDER}, {OWN_SERVER}."
            )

    def _initialise(self) -> None:
        """Runs `initdb` beside the data directory and moves the result into place: a half-made one is never used."""
        if self.data.exists() and any(self.data.iterdir()):
            raise EmbeddedPostgresError(
                f"{self.data} is not empty, but no Postgres data directory: move it away, {_OTHER_FOLDER}."
            )
        for abandoned in self.folder.glob("initdb-*"):
            shutil.rmtree(abandoned)
        fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder))
        self._give(fresh)
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        self.run("initdb", f"--pgdata={fresh.name}", "--username=postgres", "--auth=trust", *locale)
        fresh.rename(self.data)

    def _give(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def _failure(self, program: str, said: str) -> str:
        advice = next(
            (advice for symptom, advice in _ADVICE.items() if symptom in said + self._log_tail(20)),
            f"Look at {self.log}",
        )
        return (
            f"{program} failed for the embedded Postgres in {self.folder}. {advice}, {_OTHER_FOLDER}, {OWN_SERVER}.\n"
            f"{said}\nThe end of {self.log}:\n{self._log_tail(20)}"
        )

    def _log_tail(self, lines: int) -> str:
        """The last lines of the server's log, as far as it can be read."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) or "(empty)"
        except OSError as error:
            return f"({error})"


_ADVICE = {
    "No space left on device": "Free space on that disk",
    "could not look up effective user ID": "Give this user id an entry in /etc/passwd",
    "Permission denied": "See that the user who runs it may read and write there",
}


def _noted_place(data_root: Path) -> Path | None:
    """The home outside of `data_root` that belongs to it. Without the note, what may lie there is of another time."""
    try:
        return Path((data_root / _NOTE).read_text().splitlines()[0])
    except (FileNotFoundError, IndexError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _is_initialised(data: Path) -> bool:
    return (data / "PG_VERSION").exists()


def _owner_of(data: Path) -> Account:
    """Who runs Postgres on existing data: their owner, so that root and an ordinary user can share them."""
    found = data.stat()
    return Account(found.st_uid, found.st_gid) if found.st_uid else Account.nobody()


def _environment() -> dict[str, str]:
    """Ours without the variables that Postgres obeys (PGPORT, PGDATA, …), and with messages in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
