"""Who may use the admin routes: whoever has the bearer token `ADMIN_API_TOKEN`; and what their requests share."""

import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict

from cdn_pipeline.api.serving import Served

_bearer = HTTPBearer(auto_error=False, description="The value of `ADMIN_API_TOKEN`.")


async def require_admin(
    serving: Served, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Refuses with 503 where no token is configured, with 401 where another or none was sent."""
    token = serving.settings.admin_api_token
    if not token:
        raise HTTPException(503, "Admin routes are off: set ADMIN_API_TOKEN and start the API again.")
    if credentials is None or not hmac.compare_digest(
        credentials.credentials.encode(), token.get_secret_value().encode()
    ):
        raise HTTPException(
            401, "Send the header `Authorization: Bearer` with ADMIN_API_TOKEN.", {"WWW-Authenticate": "Bearer"}
        )


ADMIN = [Depends(require_admin)]
"""The `dependencies` of a route or router that is for operators only."""


class AdminRoute(APIRoute):
    """A route that looks at the token before it reads the body: FastAPI reads bodies before dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own handler, for whoever has the token."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            await require_admin(request.app.state.serving, await _bearer(request))
            return await handler(request)

        return handle


_ACTOR = Header(
    alias="X-Actor",
    min_length=1,
    max_length=100,
    pattern=r"^[ -~]+$",
    description="Who asks, for the audit: the token says only that somebody may.",
)

Actor = Annotated[str, _ACTOR]
OptionalActor = Annotated[str | None, _ACTOR]


class Exact(BaseModel):
    """A body of which nothing is ignored: half understood, it would hold the whole queue or erase other pictures."""

    model_config = ConfigDict(extra="forbid")
