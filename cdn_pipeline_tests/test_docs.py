"""Generated documentation is what the code says."""

import runpy
from pathlib import Path

import pytest

from cdn_pipeline.settings import project_root

DOCS = project_root() / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="installed without the checkout")
@pytest.mark.parametrize("name", ["architecture.md", "runbook.md"])
def test_the_generated_parts_of_a_page_are_up_to_date(name: str) -> None:
    generate = runpy.run_path(str(DOCS / "generate.py"))
    assert name in generate["PAGES"]
    assert generate["page"](name) == Path(DOCS / name).read_text(), "run `make docs`"
