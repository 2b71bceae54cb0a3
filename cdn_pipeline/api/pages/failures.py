"""Failed jobs of one kind, a page at a time, and the buttons that try them again."""

from fastapi import APIRouter, Response

from cdn_pipeline.api.admin_routes import get_failed_jobs
from cdn_pipeline.api.pages.visits import PageRoute, Visited
from cdn_pipeline.catalog.sessions import catalog_time
from cdn_pipeline.failures import FailureKind

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_ON_A_PAGE = 50


@router.get("/failures/{kind}")
def get_failures(visit: Visited, kind: FailureKind, cursor: str | None = None) -> Response:
    """The failed jobs of the last week, the latest first."""
    visit.require_reader()
    found = get_failed_jobs(visit.serving, limit=_ON_A_PAGE, kind=kind, cursor=cursor)
    return visit.page(
        "failures.html",
        kind=kind,
        now=visit.serving.read(catalog_time),
        jobs=found.jobs,
        next_cursor=found.next_cursor,
        is_first=cursor is None,
    )
