"""docs/deploy.md: its commands work, its links lead somewhere, the files it names are there."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping

import pytest

from cdn_pipeline.settings import project_root
from cdn_pipeline_tests.deploy.files import DOCS, anchors
from cdn_pipeline_tests.orchestration.conftest import run_environment, workplace
from cdn_pipeline_tests.orchestration.workplace import ROOT, Workplace
from cdn_pipeline_tests.world import SmallWorld

__all__ = ["run_environment", "workplace"]

PAGE = (DOCS / "deploy.md").read_text()
PROGRAMS = {"cdn-pipeline": "cdn_pipeline.cli", "dagster": "dagster"}
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]

# What tells how things stand does so by its exit status; here nothing was mirrored and no daemon runs.
EXIT_STATUSES: Mapping[str, set[int]] = {"cdn-pipeline status": {0, 1}}


def test_the_pages_commands_work_in_its_order(workplace: Workplace, small_world: SmallWorld) -> None:
    small_world(profiles=1, posts=1)
    for command in dict.fromkeys(COMMANDS):
        program, *arguments = shlex.split(command.replace("workspace.yaml", str(ROOT / "workspace.yaml")))
        done = subprocess.run(
            [sys.executable, "-m", PROGRAMS[program], *arguments], capture_output=True, text=True, cwd=workplace.folder
        )
        assert done.returncode in EXIT_STATUSES.get(command, {0}), f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


def test_console_blocks_hold_no_command_that_a_test_could_run() -> None:
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line.lstrip("$# ") for block in blocks for line in block.splitlines()]
    assert not [line for line in lines if line.split(" ")[0] in PROGRAMS]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"]\((?!http)([^)]+)\)", PAGE))))
def test_a_link_leads_to_a_page_and_its_heading(target: str) -> None:
    page, _, anchor = target.partition("#")
    assert (DOCS / page).exists()
    assert not anchor or anchor in anchors(page or "deploy.md")


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"(?:deploy|cdn_pipeline|cdn_pipeline_tests|requirements)/[\w./*@-]*\w", PAGE))
    assert named
    assert not [name for name in named if name != "deploy/docker/.env" and not list(project_root().glob(name))]
