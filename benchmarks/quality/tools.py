"""The study's tools: pinned packages in a folder of the user's cache, outside of the project's environment."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "requirements.txt"


def installed_tools() -> Path:
    """The folder of the packages, for PYTHONPATH; installs them unless exactly these are there.

    Raises `subprocess.CalledProcessError` if pip does not succeed; it has said why.
    """
    folder = _folder()
    done = folder / "installed"
    if not done.exists():
        print(f"installing the study's tools into {folder}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pinned = ["--require-hashes", "--no-deps", "--upgrade", "--target", str(folder), "-r", str(_REQUIREMENTS)]
        subprocess.run([*pip, *pinned], check=True)
        done.touch()
    return folder


def _folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return cache / "cdn_pipeline" / f"quality-{pins}"
