"""Installs peers: from their registries, at exact versions with hashes, outside the project's environment."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).parent

_INSTALLED = ".installed"  # the last thing that an installation writes


def default_folder() -> Path:
    """Where peers are kept from one day to the next: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdn_pipeline" / "peers"


def require(program: str, *, debian_package: str) -> str:
    """The path of a program; ends the benchmark with what to do where it is missing."""
    path = shutil.which(program)
    if path is None:
        sys.exit(f"{program} is missing: install it first (Debian: apt-get install {debian_package})")
    return path


def install_python_peer(peer: str, folder: Path) -> Path:
    """An environment with what the lock file of the peer lists; gives its folder of programs."""
    lock = HERE / f"{peer}.txt"
    pip = ["bin/pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    commands = [[sys.executable, "-m", "venv", "."], [*pip, "-r", str(lock)]]
    return install_once(folder, peer, [lock], commands) / "bin"


def install_node_peer(peer: str, folder: Path) -> Path:
    """A folder with what `package-lock.json` lists under `node_modules`.

    No install scripts run: the binaries come as packages.
    """
    npm = require("npm", debian_package="npm")
    locks = [HERE / "package.json", HERE / "package-lock.json"]
    return install_once(folder, peer, locks, [[npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]])


def package_versions(programs: Path, names: Collection[str]) -> dict[str, str]:
    """The versions of some packages of a Python peer's environment."""
    packages = [str(path) for path in programs.parent.glob("lib/python*/site-packages")]
    return {each.name: each.version for each in distributions(path=packages) if each.name in names}


def install_once(folder: Path, peer: str, locks: Sequence[Path], commands: Sequence[Sequence[str]]) -> Path:
    """Runs the commands in a folder of the locks' own, which gets copies of them, unless all that was done before.

    Raises `subprocess.CalledProcessError` if one does not succeed; it has said why, and the next time starts over.
    """
    content = b"".join(lock.read_bytes() for lock in locks) + sys.version.encode()
    home = folder / f"{peer}-{hashlib.sha256(content).hexdigest()[:12]}"
    if (home / _INSTALLED).exists():
        return home
    print(f"installing {peer} into {home}", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for lock in locks:
        shutil.copy(lock, home)
    for command in commands:
        subprocess.run(command, cwd=home, check=True)
    (home / _INSTALLED).touch()
    return home
