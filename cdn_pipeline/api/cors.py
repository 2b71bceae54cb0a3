"""Which pages of other origins may ask the API."""

from collections.abc import Sequence

from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class ApiCorsMiddleware(CORSMiddleware):
    """Pages of these origins may; renditions are for all pages, and say so themselves."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "If-None-Match", "X-Actor", "X-Request-ID"],
            expose_headers=["ETag", "X-Request-ID", "Retry-After"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers preflights, and adds the headers to all other answers of the API."""
        if scope["type"] == "http" and scope["path"].startswith("/th/"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
