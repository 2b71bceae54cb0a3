"""Every command that README and the pages under docs/ name is there, and does something with what they give it."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from cdn_pipeline.cli.commands import app
from cdn_pipeline.settings import project_root
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import RUN, publish, reference, register, see

# They run until they are ended; tests of their own start them.
SERVERS = frozenset({"demo", "dev", "serve"})

OWNER = "0b3c2a5e-0000-4000-8000-000000000001"
MEANT = {
    "ID": OWNER,
    "PROFILE": OWNER,
    "URL": f"https://img.example/th/ig/{OWNER}/avatar/256/0123456789abcdef.webp",
    "IMAGE": OWNER,
    "RECIPE": "avif_thumbnails",
    "DAY": "2024-01-01",
    "KIND": "source_gone",
    "N": "5",
}


def _named() -> Iterator[str]:
    pages = [project_root() / "README.md", *sorted((project_root() / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text()
        for inline in re.findall(r"`cdn-pipeline ([a-z][^`]*)`", text):
            yield " ".join(inline.split())
        for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
            yield from re.findall(r"^ *cdn-pipeline ([a-z][^#\n]*)", block, re.MULTILINE)


def _variants(command: str) -> Iterator[str]:
    """The command without what stands in brackets, and with it."""
    yield re.sub(r"\[[^]]*]", "", command)
    if "[" in command:
        yield re.sub(r"[][]", "", command)


COMMANDS = sorted({" ".join(each.split()) for command in _named() for each in _variants(command)})


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.split()[0] not in SERVERS])
def test_a_documented_command_works(
    command: str, invoke: Invoke, connection: sa.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # reports are written where one stands
    register(connection, RUN)
    see(connection, reference(owner=OWNER))
    publish(connection, sha256="a" * 64)
    arguments = [MEANT.get(word, word) for word in shlex.split(command)]
    result = CliRunner().invoke(app, arguments, input="y\n" * 5)
    assert "Usage:" not in result.output + result.stderr, result.stderr
    assert "Traceback" not in result.output + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2)


def test_the_servers_are_commands_too() -> None:
    for server in SERVERS:
        assert CliRunner().invoke(app, [server, "--help"]).exit_code == 0
