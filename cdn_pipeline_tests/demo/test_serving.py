from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from aiohttp import web
from fastapi import FastAPI

from cdn_pipeline.demo.serving import in_thread, listening, serving_asgi


def _greeting() -> web.Application:
    async def greet(_: web.Request) -> web.Response:
        return web.Response(text="good day")

    application = web.Application()
    application.add_routes([web.get("/", greet)])
    return application


def test_an_aiohttp_application_answers_until_the_context_ends() -> None:
    with in_thread(listening(_greeting())) as base_url:
        assert httpx.get(base_url).text == "good day"
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url)


def test_servers_at_two_addresses_may_have_one_port() -> None:
    with in_thread(listening(_greeting())) as first:
        port = urlsplit(first).port or 0
        with in_thread(listening(_greeting(), "127.0.0.2", port)) as second:
            assert second == f"http://127.0.0.2:{port}"
            assert httpx.get(first).text == httpx.get(second).text == "good day"


def test_a_port_that_is_taken_is_an_error() -> None:
    with in_thread(listening(_greeting())) as base_url:
        again = listening(_greeting(), port=urlsplit(base_url).port or 0)
        with pytest.raises(OSError, match="address already in use"), in_thread(again):
            pass


def test_an_asgi_application_answers_until_the_context_ends_and_its_lifespan_with_it() -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        happened.append("started")
        yield
        happened.append("stopped")

    application = FastAPI(lifespan=lifespan)
    application.get("/")(lambda: happened)
    with serving_asgi(application) as base_url:
        assert httpx.get(base_url).json() == ["started"]
    assert happened == ["started", "stopped"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(base_url)


def test_an_asgi_application_that_does_not_start_is_an_error() -> None:
    def lifespan(_: FastAPI) -> AbstractAsyncContextManager[None]:
        raise ValueError("no database")

    with pytest.raises(RuntimeError, match="did not start"), serving_asgi(FastAPI(lifespan=lifespan)):
        pass
