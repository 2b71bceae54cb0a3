"""`serve`: the API behind uvicorn."""

import uvicorn

from cdn_pipeline.api.access import LOGGING
from cdn_pipeline.api.app import create_app
from cdn_pipeline.demo.processes import require_free
from cdn_pipeline.settings import Settings

_GRACE_SECONDS = 20  # for requests under way when the process is asked to end; none takes longer by far


def run_server(settings: Settings, *, host: str, port: int, watch: bool | None) -> None:
    """Answers until SIGINT or SIGTERM; then finishes what it has begun.

    Raises:
        ConfigurationError: the port is taken, or ALERT_URLS holds a URL that apprise does not understand.
    """
    require_free(port)
    print(f"API and operations page: http://{host}:{port}", flush=True)  # noqa: T201
    app = create_app(settings, watch=settings.alert_urls is not None if watch is None else watch)
    uvicorn.run(
        app, host=host, port=port, log_config=LOGGING, access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS
    )
