"""The job `clean_up`: it removes, tells how much, and verifies what is left."""

import os
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from cdn_pipeline.definitions import defs
from cdn_pipeline.orchestration.assets.upkeep import cleaned_stores
from cdn_pipeline_tests.orchestration.workplace import Workplace, verdicts
from cdn_pipeline_tests.queue.catalogs import session
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror, objects, put

CHECK = "stores_hold_what_the_catalog_says"


@pytest.fixture
def _mirrored(catalog: sa.Engine, tmp_path: Path) -> None:
    """A picture, and the objects of a run that was killed long ago."""
    stores = folder_stores(tmp_path)
    with session(catalog) as connection:
        mirror(connection, stores, "x")
    put(stores, "avatar", "killed")
    for file in tmp_path.rglob("*"):
        if file.is_file():
            os.utime(file, (0, 0))


def clean_up(workplace: Workplace, **config: object) -> dg.ExecuteInProcessResult:
    run_config = {"ops": {cleaned_stores.op.name: {"config": config}}} if config else None
    job = defs.resolve_job_def("clean_up")
    return job.execute_in_process(instance=workplace.instance, run_config=run_config, raise_on_error=False)


@pytest.mark.usefixtures("_mirrored")
def test_it_removes_what_the_catalog_does_not_know_and_tells_numbers_and_bytes(
    memory_workplace: Workplace, tmp_path: Path
) -> None:
    before = objects(tmp_path)
    result = clean_up(memory_workplace)
    assert result.success
    assert len(objects(tmp_path)) == len(before) - 3
    [event] = result.asset_materializations_for_node(cleaned_stores.op.name)
    numbers = {name: entry.value for name, entry in event.metadata.items()}
    assert numbers["renditions that the catalog does not know"] == 2
    assert numbers["originals that nothing refers to"] == 1
    assert numbers["originals that nothing refers to (bytes)"] == len(b"original killed")
    assert verdicts(result) == {CHECK: (True, "WARN")}


@pytest.mark.usefixtures("_mirrored")
@pytest.mark.parametrize(("minutes", "removed", "more_is_left"), [(60, 3, False), (0, 2, True)])
def test_it_goes_on_until_nothing_is_left_or_its_time_is_over(
    memory_workplace: Workplace, tmp_path: Path, minutes: int, removed: int, more_is_left: bool
) -> None:
    before = objects(tmp_path)
    result = clean_up(memory_workplace, limit=1, minutes=minutes)
    assert result.success
    assert len(objects(tmp_path)) == len(before) - removed
    [event] = result.asset_materializations_for_node(cleaned_stores.op.name)
    numbers = {name: entry.value for name, entry in event.metadata.items()}
    assert numbers["renditions that the catalog does not know"] == removed - 1
    assert numbers["more is left"] is more_is_left


@pytest.mark.usefixtures("_mirrored")
def test_a_dry_run_removes_nothing(memory_workplace: Workplace, tmp_path: Path) -> None:
    before = objects(tmp_path)
    result = clean_up(memory_workplace, dry_run=True)
    assert result.success
    assert objects(tmp_path) == before


@pytest.mark.usefixtures("_mirrored")
def test_an_object_that_is_gone_or_damaged_is_an_error_of_the_check(
    memory_workplace: Workplace, tmp_path: Path
) -> None:
    assert clean_up(memory_workplace).success
    next((tmp_path / "objects" / "th").rglob("*.webp")).write_bytes(b"damaged")
    assert verdicts(clean_up(memory_workplace)) == {CHECK: (False, "ERROR")}


@pytest.mark.usefixtures("_mirrored")
def test_a_catalog_that_knows_nothing_of_the_stores_fails_the_run(
    memory_workplace: Workplace, catalog: sa.Engine, tmp_path: Path
) -> None:
    with session(catalog) as connection:
        connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))
    before = objects(tmp_path)
    assert not clean_up(memory_workplace).success
    assert objects(tmp_path) == before
