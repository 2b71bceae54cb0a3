"""Prometheus's own judge of rules."""

import os
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from cdn_pipeline_tests.deploy.files import Promtool


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool (Debian's package `prometheus`) with these arguments; what it finds wrong fails the test."""
    program = shutil.which("promtool")
    if program is None and os.environ.get("CDN_PIPELINE_PROMTOOL") != "required":
        pytest.skip("promtool is not installed")
    assert program, "promtool is required here"

    def run(arguments: Sequence[str]) -> None:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
