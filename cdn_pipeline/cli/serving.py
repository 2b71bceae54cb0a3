"""`serve`: the API behind uvicorn."""

import sys
from urllib.parse import urlsplit

import uvicorn

from cdn_pipeline.api.access import LOGGING
from cdn_pipeline.api.app import create_app
from cdn_pipeline.demo.processes import require_free
from cdn_pipeline.settings import Settings, is_loopback

_GRACE_SECONDS = 20  # for requests under way when the process is asked to end; none takes longer by far

_ELSEWHERE = (
    "The pictures' URLs that this server answers begin with {base}, which is another port of this machine: unless "
    "somebody serves there, set CDN_BASE_URL=http://127.0.0.1:{port}, run `cdn-pipeline migrate`, and start again."
)


def run_server(settings: Settings, *, host: str, port: int, watch: bool | None) -> None:
    """Answers until SIGINT or SIGTERM; then finishes what it has begun.

    Raises:
        ConfigurationError: the port is taken, or ALERT_URLS holds a URL that apprise does not understand.
    """
    require_free(port)
    print(f"API and operations page: http://{host}:{port}", flush=True)  # noqa: T201
    if not serves_its_urls(settings, port):
        print(_ELSEWHERE.format(base=settings.public_base_url, port=port), file=sys.stderr, flush=True)  # noqa: T201
    app = create_app(settings, watch=settings.alert_urls is not None if watch is None else watch)
    uvicorn.run(
        app, host=host, port=port, log_config=LOGGING, access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS
    )


def serves_its_urls(settings: Settings, port: int) -> bool:
    """Whether a folder's pictures are had at the URLs that we name, as far as that can be seen: on this machine."""
    base = settings.public_base_url
    return not settings.objects_url.startswith("file:") or not is_loopback(base) or urlsplit(base).port == port
