"""Fixtures of the API's tests: a client of the served application, and a session on its catalog."""

from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa

from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.api.apis import api
from cdn_pipeline_tests.queue.catalogs import RUN, register, session


@pytest.fixture
def client(settings: Settings, catalog: sa.Engine) -> Iterator[httpx.Client]:
    """Nobody in particular."""
    with api(settings) as client:
        yield client


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """Every statement commits; a run lives as long."""
    with session(catalog) as connection:
        register(connection, RUN)
        yield connection
