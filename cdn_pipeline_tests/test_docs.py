"""Generated documentation is what the code says."""

import re
import runpy
from pathlib import Path

import pytest

from cdn_pipeline.api.app import openapi_document
from cdn_pipeline.api.document import operations
from cdn_pipeline.settings import project_root

DOCS = project_root() / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="installed without the checkout")
@pytest.mark.parametrize("name", ["architecture.md", "runbook.md", "api.md"])
def test_the_generated_parts_of_a_page_are_up_to_date(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    generate = runpy.run_path(str(DOCS / "generate.py"))
    assert name in generate["PAGES"]
    assert generate["page"](name) == Path(DOCS / name).read_text(), "run `make docs`"


@pytest.mark.skipif(not DOCS.exists(), reason="installed without the checkout")
def test_every_endpoint_that_was_agreed_on_is_there_and_its_proof_as_well() -> None:
    rows = re.findall(r"^\| `(\w+) (\S+)` \| `(\S+)::(\w+)` \|$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(rows) == 12
    routes = {(method, path) for method, path, _ in operations(openapi_document())}
    for method, path, file, name in rows:
        assert (method, path) in routes
        assert f"\ndef {name}(" in (project_root() / file).read_text()
