"""`clean-up` and `verify`: told first, done when asked for."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from cdn_pipeline.upkeep.stores import Stores
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.queue.catalogs import open_jobs
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror, objects, renditions_of


@pytest.fixture
def stores(connection: sa.Connection, environment: Mapping[str, str], tmp_path: Path) -> Stores:
    """Stores of an image whose picture was replaced 31 days ago."""
    stores = folder_stores(tmp_path)
    mirror(connection, stores, "x", "y")
    connection.execute(sa.text("UPDATE cdn_image_renditions SET superseded_at = superseded_at - interval '31 days'"))
    return stores


def lose_a_rendition(stores: Stores) -> str:
    path = renditions_of("avatar", "y")[0][0].path
    asyncio.run(stores.renditions.delete(path.removeprefix("/")))
    return path


def test_clean_up_only_tells_what_it_would_remove(invoke: Invoke, stores: Stores, tmp_path: Path) -> None:
    before = objects(tmp_path)
    result = invoke("clean-up")
    assert result.exit_code == 0, result.output
    assert "nothing was changed" in result.output
    assert [line.split()[:3] for line in result.output.splitlines() if "superseded" in line] == [
        ["superseded", "renditions", "2"]
    ]
    assert "--delete" in result.output
    assert objects(tmp_path) == before


def test_clean_up_removes_when_it_is_told_to(invoke: Invoke, stores: Stores, tmp_path: Path) -> None:
    before = objects(tmp_path)
    assert invoke("clean-up", "--delete").exit_code == 0
    assert len(objects(tmp_path)) == len(before) - 2


def test_clean_up_says_that_its_limit_was_reached(invoke: Invoke, stores: Stores) -> None:
    assert "run it again" in invoke("clean-up", "--delete", "--limit", "1").output


def test_the_grace_period_is_a_setting(
    invoke: Invoke, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERSEDED_KEPT_DAYS", "32")
    before = objects(tmp_path)
    assert invoke("clean-up", "--delete").exit_code == 0
    assert objects(tmp_path) == before


def test_verify_passes_when_the_stores_hold_what_the_catalog_says(invoke: Invoke, stores: Stores) -> None:
    for arguments in ((), ("--all",), ("--sample", "1")):
        result = invoke("verify", *arguments)
        assert result.exit_code == 0, result.output
        assert "The stores hold what the catalog says." in result.output


def test_verify_fails_and_names_what_is_missing(invoke: Invoke, stores: Stores, connection: sa.Connection) -> None:
    path = lose_a_rendition(stores)
    result = invoke("verify")
    assert result.exit_code == 1
    assert f"{path} is missing" in result.output
    assert "1 object wrong" in result.output
    assert open_jobs(connection) == []


def test_verify_passes_when_everything_is_in_repair(invoke: Invoke, stores: Stores, connection: sa.Connection) -> None:
    lose_a_rendition(stores)
    result = invoke("verify", "--all", "--repair")
    assert result.exit_code == 0, result.output
    assert "1 of 1 object will be put back" in result.output
    assert [job["stage"] for job in open_jobs(connection)] == ["encode"]


def test_verify_fails_when_something_cannot_be_repaired(
    invoke: Invoke, stores: Stores, connection: sa.Connection
) -> None:
    lose_a_rendition(stores)
    connection.execute(sa.text("UPDATE cdn_image_assets SET original_identity = 'of the picture before'"))
    result = invoke("verify", "--repair")
    assert result.exit_code == 1
    assert "0 of 1 object" in result.output


def test_of_all_objects_the_unknown_are_counted(invoke: Invoke, stores: Stores, connection: sa.Connection) -> None:
    connection.execute(sa.text("DELETE FROM cdn_image_renditions WHERE state = 'superseded'"))
    [line] = [line for line in invoke("verify", "--all").output.splitlines() if "current renditions" in line]
    assert line.split() == ["current", "renditions", "2", "0", "0", "2"]
