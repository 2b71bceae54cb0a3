"""A stand-in for what the doctor asks of Cloudflare: a token's state, a purge, the limits of a zone's analytics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from cdn_pipeline.demo.serving import in_thread, listening
from cdn_pipeline_tests.cloudflare.figures import Figures
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID, refusal

ACCOUNT_ID = "fedcba9876543210fedcba9876543210"


@dataclass
class Cloudflare:
    """Knows one token, of a user or of an account."""

    token_path: str = "/user/tokens/verify"
    status: str = "active"
    may_purge: bool = True
    purged: list[Any] = field(default_factory=list)
    url: str = ""

    @property
    def environment(self) -> dict[str, str]:
        names = ("CF_API_URL", "CF_API_TOKEN", "CF_ZONE_ID", "CF_ACCOUNT_ID")
        return dict(zip(names, (self.url, TOKEN, ZONE_ID, ACCOUNT_ID), strict=True))

    async def verify(self, request: web.Request) -> web.Response:
        if request.path != self.token_path or not _has_token(request):
            return web.json_response(refusal(1000, "Invalid API Token"), status=401)
        return web.json_response({"success": True, "errors": [], "result": {"id": "1", "status": self.status}})

    async def purge(self, request: web.Request) -> web.Response:
        if not self.may_purge or not _has_token(request):
            return web.json_response(refusal(10000, "Authentication error"), status=403)
        self.purged.append(await request.json())
        return web.json_response({"success": True, "errors": [], "result": {"id": ZONE_ID}})

    async def graphql(self, request: web.Request) -> web.Response:
        authorization = request.headers["Authorization"]
        status, _, answer = Figures().answer("/client/v4/graphql", authorization, await request.json())
        return web.json_response(answer, status=status)


def _has_token(request: web.Request) -> bool:
    return request.headers["Authorization"] == f"Bearer {TOKEN}"


@contextmanager
def running_cloudflare() -> Iterator[Cloudflare]:
    """Its API, behind a real server on this machine."""
    cloudflare = Cloudflare()
    application = web.Application()
    application.add_routes(
        [
            web.get("/{owner:.*}/tokens/verify", cloudflare.verify),
            web.post(f"/zones/{ZONE_ID}/purge_cache", cloudflare.purge),
            web.post("/graphql", cloudflare.graphql),
        ]
    )
    with in_thread(listening(application)) as cloudflare.url:
        yield cloudflare
