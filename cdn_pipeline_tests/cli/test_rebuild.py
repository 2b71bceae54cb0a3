"""`rebuild-catalog`: told first, done when asked for."""

from collections.abc import Mapping

import pytest
import sqlalchemy as sa

from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.engine.runs import folder, run, view
from cdn_pipeline_tests.world import SmallWorld


@pytest.fixture
def lost(small_world: SmallWorld, settings: Settings, environment: Mapping[str, str], catalog: sa.Engine) -> int:
    """A mirrored world whose catalog has lost every image; how many there were."""
    small_world(profiles=2, posts=0)
    run(settings)
    images = len(view(catalog))
    with catalog.begin() as connection:
        connection.execute(sa.text("TRUNCATE cdn_image_assets CASCADE"))
    return images


def test_it_only_tells_what_it_would_bring_back(invoke: Invoke, lost: int, catalog: sa.Engine) -> None:
    result = invoke("rebuild-catalog")
    assert result.exit_code == 0, result.output
    assert "nothing was changed" in result.output
    assert number_of(result.output, "images that the catalog did not have") == lost
    assert "--write" in result.output
    assert view(catalog) == {}


def test_it_brings_everything_back_when_it_is_told_to(invoke: Invoke, lost: int, catalog: sa.Engine) -> None:
    result = invoke("rebuild-catalog", "--write")
    assert result.exit_code == 0, result.output
    assert number_of(result.output, "images that the catalog did not have") == lost
    assert len(view(catalog)) == lost


def number_of(output: str, what: str) -> int:
    [line] = [line for line in output.splitlines() if what in line]
    return int(line.split()[-1])


def test_objects_that_say_nothing_are_named(invoke: Invoke, lost: int, settings: Settings) -> None:
    manifest = next((folder(settings.objects_url) / ".meta").rglob("*.json"))
    manifest.write_text("{}")
    key = manifest.relative_to(folder(settings.objects_url) / ".meta").as_posix().removesuffix(".json")
    assert f"{key}: the metadata has no recipe" in invoke("rebuild-catalog").output


def test_a_damaged_tombstone_is_an_error_in_words(invoke: Invoke, settings: Settings, lost: int) -> None:
    tombstones = folder(settings.originals_url) / "tombstones"
    tombstones.mkdir()
    (tombstones / "1.json").write_text("{")
    result = invoke("rebuild-catalog", "--write")
    assert result.exit_code == 2
    assert "Traceback" not in result.output
