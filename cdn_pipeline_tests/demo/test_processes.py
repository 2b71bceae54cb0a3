"""Child processes end with the block that started them, and say why they failed."""

import socket
import sys
from pathlib import Path

import pytest
from aiohttp import web

from cdn_pipeline.demo.processes import ChildFailedError, free_port, running
from cdn_pipeline.demo.serving import in_thread, listening


def test_a_child_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such origin')"]
    with (
        pytest.raises(ChildFailedError, match="no such origin"),
        running(command, tmp_path / "log", ready_url="http://127.0.0.1:9/"),
    ):
        pass


def test_a_child_ends_with_its_block(tmp_path: Path) -> None:
    with running([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log") as process:
        assert process.poll() is None
    assert process.returncode is not None


def test_a_taken_port_is_not_taken_twice() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port


def test_a_child_is_not_ready_because_somebody_else_answers_at_its_port(tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="somebody else")

    application = web.Application()
    application.router.add_get("/", answer)
    program = "import time; time.sleep(1); raise SystemExit('the port is taken')"
    with (
        in_thread(listening(application)) as url,
        pytest.raises(ChildFailedError, match="the port is taken"),
        running([sys.executable, "-c", program], tmp_path / "log", ready_url=url),
    ):
        pass
