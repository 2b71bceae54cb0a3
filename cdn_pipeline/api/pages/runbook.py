"""The runbook as a page, so that whoever is woken up need not look for it."""

import re
from functools import cache
from itertools import pairwise

from fastapi import APIRouter, HTTPException, Response
from markdown_it import MarkdownIt
from markupsafe import Markup

from cdn_pipeline.api.pages.visits import PageRoute, Visited
from cdn_pipeline.observe.parts import RUNBOOK
from cdn_pipeline.settings import project_root

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.get("/runbook")
def get_runbook(visit: Visited) -> Response:
    """The whole of it; its headings can be linked to."""
    text = _runbook()
    if text is None:
        raise HTTPException(404, f"{RUNBOOK} is not on this machine: look for it in the project's repository.")
    return visit.page("runbook.html", text=text)


def runbook_url(section: str) -> str | None:
    """Where a section is shown; None where the runbook is not on this machine."""
    return f"/runbook#{section}" if _runbook() is not None else None


@cache
def _runbook() -> Markup | None:
    """The runbook in HTML; none where the package was installed without the checkout."""
    file = project_root() / RUNBOOK
    if not file.is_file():
        return None
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(file.read_text("utf-8"))
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor(inline.content))
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704  # our own text, and no HTML in it


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
