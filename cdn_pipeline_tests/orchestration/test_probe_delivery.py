"""The job `probe_delivery`: published URLs behind a stand-in for the CDN, asked for and judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from aiohttp import web

from cdn_pipeline.catalog.migrate import migrate
from cdn_pipeline.definitions import defs
from cdn_pipeline_tests.observe.cdn import Cdn, running_cdn
from cdn_pipeline_tests.orchestration.workplace import Workplace, verdicts
from cdn_pipeline_tests.queue.catalogs import session
from cdn_pipeline_tests.upkeep.mirrored import folder_stores, mirror

FAST, BROKEN = "urls_answer_within_150_ms", "no_published_url_is_broken"


@pytest.fixture
def cdn(
    catalog: sa.Engine, memory_workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cdn]:
    """In front of what is published, and named in the environment and the catalog."""
    with running_cdn(tmp_path / "objects") as cdn:
        monkeypatch.setenv("CDN_BASE_URL", cdn.base_url)
        migrate(catalog, cdn.base_url)
        yield cdn


def publish(catalog: sa.Engine, folder: Path) -> None:
    with session(catalog) as connection:
        mirror(connection, folder_stores(folder), "x")


def probe(workplace: Workplace) -> dg.ExecuteInProcessResult:
    job = defs.resolve_job_def("probe_delivery")
    return job.execute_in_process(instance=workplace.instance, raise_on_error=False)


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    [event] = result.asset_materializations_for_node("delivery_probes")
    return {name: entry.value for name, entry in event.metadata.items()}


def test_it_tells_percentiles_of_what_strangers_get_and_judges_them(
    memory_workplace: Workplace, catalog: sa.Engine, cdn: Cdn, tmp_path: Path
) -> None:
    publish(catalog, tmp_path)
    result = probe(memory_workplace)
    assert result.success
    numbers = metadata(result)
    assert (numbers["URLs probed"], numbers["broken"], numbers["hit ratio"]) == (2, 0, 0.0)
    assert 0 < numbers["cold p50 (ms)"] <= numbers["cold p99 (ms)"]
    assert "| HIT | – | – | – | – |" in numbers["first byte"]
    assert "| MISS | 2 |" in numbers["first byte"]
    assert verdicts(result) == {FAST: (True, "WARN"), BROKEN: (True, "WARN")}


def test_a_broken_url_is_an_error_that_names_it(
    memory_workplace: Workplace, catalog: sa.Engine, cdn: Cdn, tmp_path: Path
) -> None:
    publish(catalog, tmp_path)
    with catalog.connect() as connection:
        path = connection.scalar(sa.text("SELECT min(path) FROM cdn_image_renditions"))
    assert path
    cdn.faults[path] = [lambda _: web.Response(status=404)] * 4
    result = probe(memory_workplace)
    assert result.success
    assert verdicts(result) == {FAST: (True, "WARN"), BROKEN: (False, "ERROR")}
    [evaluation] = [each for each in result.get_asset_check_evaluations() if each.check_name == BROKEN]
    assert path in str(evaluation.metadata["samples"].value)


def test_where_nothing_is_published_there_is_nothing_to_judge(memory_workplace: Workplace, cdn: Cdn) -> None:
    result = probe(memory_workplace)
    assert result.success
    assert metadata(result)["URLs probed"] == 0
    assert verdicts(result) == {FAST: (True, "WARN"), BROKEN: (True, "WARN")}
    assert cdn.requests == []
