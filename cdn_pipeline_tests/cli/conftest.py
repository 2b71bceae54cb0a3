"""Fixtures of the commands' tests: the environment of a catalog, and a session on it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from cdn_pipeline.cli import app
from cdn_pipeline_tests.queue.catalogs import session

Invoke = Callable[..., Result]


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """What commands will find."""
    with session(catalog) as connection:
        yield connection


@pytest.fixture
def invoke(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Runs a command on the catalog, in a terminal of so many columns."""
    monkeypatch.chdir(tmp_path)  # where there is no .env
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, columns: int = 200, answer: str | None = None) -> Result:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)}, input=answer)

    return run
