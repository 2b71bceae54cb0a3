"""A local stand-in for Dagster's GraphQL: what the API asks, in the shapes of the installed schema."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from cdn_pipeline.demo.serving import in_thread, listening

LAUNCHED = {"__typename": "LaunchRunSuccess", "run": {"runId": "run-1"}}


@dataclass
class DagsterService:
    """Two code locations, the second of which has the job. Tests replace what it answers."""

    url: str = ""
    repositories: Any = field(
        default_factory=lambda: {
            "__typename": "RepositoryConnection",
            "nodes": [
                {"name": "others", "location": {"name": "elsewhere"}, "jobs": [{"name": "report"}]},
                {"name": "__repository__", "location": {"name": "here"}, "jobs": [{"name": "publish_images"}]},
            ],
        }
    )
    launched: Any = field(default_factory=lambda: LAUNCHED)
    reply: web.Response | None = None  # instead of everything
    hangs_for: float = 0.0  # seconds
    launches: list[dict[str, Any]] = field(default_factory=list)  # the parameters of each

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes([web.post("/graphql", self._answer)])
        return application

    async def _answer(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.hangs_for)
        if self.reply is not None:
            return self.reply
        question = await request.json()
        if "launchRun" not in question["query"]:
            return web.json_response({"data": {"repositoriesOrError": self.repositories}})
        self.launches.append(question["variables"]["executionParams"])
        return web.json_response({"data": {"launchRun": self.launched}})


@contextlib.contextmanager
def running_dagster() -> Iterator[DagsterService]:
    """The stand-in, in a thread of this process on a free port."""
    service = DagsterService()
    with in_thread(listening(service.application())) as base_url:
        service.url = f"{base_url}/graphql"
        yield service
