"""Generated documentation is what the code says."""

import runpy
from pathlib import Path

import pytest

from cdn_pipeline.settings import project_root

DOCS = project_root() / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="installed without the checkout")
def test_the_diagrams_in_the_architecture_page_are_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "generate.py"))["page"]
    text = Path(DOCS / "architecture.md").read_text()
    assert page(text) == text, "run `make docs`"
