"""The HTTP application that `cdn-pipeline serve` runs."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Lifespan

from cdn_pipeline.api import admin_routes, health, media, monitoring, prometheus, refresh
from cdn_pipeline.api.access import AccessMiddleware
from cdn_pipeline.api.bodies import BodyLimitMiddleware
from cdn_pipeline.api.cors import ApiCorsMiddleware
from cdn_pipeline.api.delivery import rendition_files
from cdn_pipeline.api.document import TAGS, Api, operation_id
from cdn_pipeline.api.head import HeadMiddleware
from cdn_pipeline.api.pages import routes as pages
from cdn_pipeline.api.problems import DefectMiddleware, answer_with_problems
from cdn_pipeline.api.serving import open_serving
from cdn_pipeline.catalog.sessions import SERVING_CONNECTIONS
from cdn_pipeline.observe.alerts.watch import watching
from cdn_pipeline.settings import Settings

_DESCRIPTION = """Immutable URLs for images whose own URLs expire, and how the pipeline that makes them is doing.

Errors are `application/problem+json`. Every answer has an `X-Request-ID`, which the logs have too. Admin routes want a
bearer token. Times are UTC.
"""


def create_app(settings: Settings, *, watch: bool = False) -> FastAPI:
    """The API, and delivery of renditions under `/th` (folder stores only); `watch` evaluates alerts as well."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # More threads than connections would only wait for one; some more are for what needs none.
        current_default_thread_limiter().total_tokens = SERVING_CONNECTIONS + 8
        with ExitStack() as stack:
            serving = app.state.serving = await run_sync(stack.enter_context, open_serving(settings))
            if watch:
                stack.enter_context(watching(settings, serving.catalog, serving.monitor))
            yield

    app = _with_routes(lifespan)
    app.state.registry = CollectorRegistry()
    answer_with_problems(app)
    app.add_middleware(BodyLimitMiddleware)  # the innermost; what follows goes around it
    app.add_middleware(DefectMiddleware)
    if settings.api_cors_origins:
        app.add_middleware(ApiCorsMiddleware, origins=settings.api_cors_origins)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(AccessMiddleware, registry=app.state.registry)
    files = rendition_files(settings)
    if files is not None:
        app.mount("/th", files, name="renditions")
    return app


def openapi_document() -> dict[str, Any]:
    """What `/openapi.json` answers, without anything that serves."""
    return _with_routes(None).openapi()


def _with_routes(lifespan: Lifespan[FastAPI] | None) -> Api:
    app = Api(
        title="cdn_pipeline",
        version="1.0.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_tags=TAGS,
        generate_unique_id_function=operation_id,
        docs_url=None,  # they load scripts from another's CDN; docs/api.md says the same
        redoc_url=None,
    )
    for part in (media, refresh, health, monitoring, admin_routes, prometheus, pages):
        app.include_router(part.router)
    return app
