"""HEAD wherever there is GET: monitors ask so, and `curl -I` does."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMiddleware:
    """Lets routes answer HEAD as they answer GET; the server sends what it asked for, which is no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request. Renditions know HEAD themselves, without opening the file."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith("/th/"):
            await self._app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}
        try:
            await self._app(asked, receive, send)
        finally:
            scope["route"] = asked.get("route")  # which the metrics count by
