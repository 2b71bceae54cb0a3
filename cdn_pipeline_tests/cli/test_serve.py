"""`cdn-pipeline serve`: what it says of its port, and, as a process, how it ends."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.cli.serving import serves_its_urls
from cdn_pipeline.demo.processes import free_port, python, running, tail
from cdn_pipeline.settings import Settings

PROFILE = "00000000-0000-4000-8000-000000000000"


def wait_until(true: Callable[[], bool]) -> None:
    """Polls; pytest's own time limit ends a wait in vain."""
    while not true():
        time.sleep(0.05)


def waits_for_a_lock(catalog: sa.Engine) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with catalog.connect() as connection:
        return bool(connection.scalar(sa.text(query)))


def listens(port: int) -> bool:
    with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.parametrize(
    ("changed", "port", "is_so"),
    [
        ({}, 8000, True),
        ({}, 8001, False),
        ({"CDN_BASE_URL": "http://localhost:8001"}, 8001, True),
        ({"CDN_BASE_URL": "http://[::1]:8000"}, 8001, False),
        ({"CDN_BASE_URL": "https://cdn.example"}, 8001, True),  # a proxy's: nobody can tell
    ],
)
def test_pictures_are_had_at_the_port_that_their_urls_name(
    environment: Mapping[str, str], changed: dict[str, str], port: int, is_so: bool
) -> None:
    variables = {name.lower(): value for name, value in {**environment, **changed}.items()}
    settings = Settings(_env_file=None, **variables)  # type: ignore[arg-type, call-arg]
    assert serves_its_urls(settings, port) == is_so


def test_a_request_under_way_is_answered_when_the_server_is_asked_to_end(
    environment: Mapping[str, str], catalog: sa.Engine, tmp_path: Path
) -> None:
    port, log = free_port(0), tmp_path / "serve.log"
    command = python("-m", "cdn_pipeline.cli", "serve", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    variables = {**os.environ, **environment}
    with (
        running(command, log, ready_url=f"{url}/livez", environment=variables) as server,
        ThreadPoolExecutor(1) as client,
    ):
        with catalog.begin() as blocker:
            blocker.execute(sa.text("LOCK TABLE cdn_image_assets IN ACCESS EXCLUSIVE MODE"))
            asked = client.submit(httpx.get, f"{url}/api/v1/creators/ig/{PROFILE}/media", trust_env=False, timeout=30)
            wait_until(lambda: waits_for_a_lock(catalog))
            server.terminate()
            wait_until(lambda: not listens(port))
            assert server.poll() is None
        answer = asked.result()
        server.wait()
    assert (answer.status_code, answer.json()["status"]) == (404, 404)  # the profile is unknown: Postgres has said so
    assert "Traceback" not in tail(log, 100)
    assert f"set CDN_BASE_URL={url}" in log.read_text()  # its URLs lead to port 8000
