"""Fixtures of runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import pytest

from cdn_pipeline_tests.orchestration.workplace import ROOT, Workplace, opened_workplace


@pytest.fixture
def run_environment(environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a run is that of this process; the working folder holds no `.env`."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def workplace(run_environment: None, tmp_path: Path) -> Iterator[Workplace]:
    """A Dagster home with the project's own dagster.yaml."""
    with opened_workplace(tmp_path, ROOT / "dagster.yaml") as workplace:
        yield workplace


@pytest.fixture
def memory_workplace(run_environment: None, tmp_path: Path) -> Iterator[Workplace]:
    """A Dagster instance in memory, for runs in this process: 2 s for 64 shards instead of 5."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Workplace(tmp_path, instance)
