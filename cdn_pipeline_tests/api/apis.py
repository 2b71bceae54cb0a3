"""The API as it is served, with an admin's token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from cdn_pipeline.api.app import create_app
from cdn_pipeline.demo.serving import serving_asgi
from cdn_pipeline.settings import Settings

TOKEN = "a token that nobody guesses"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


def with_settings(settings: Settings, **more: Any) -> Settings:
    """The same settings, but for these."""
    return Settings(_env_file=None, **{**settings.model_dump(exclude_unset=True), **more})  # type: ignore[call-arg]


@contextmanager
def api(settings: Settings, **more: Any) -> Iterator[httpx.Client]:
    """A client of the application behind its real server, for as long as the `with` lasts."""
    values = {"admin_api_token": TOKEN, **more}
    with (
        serving_asgi(create_app(with_settings(settings, **values))) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client
