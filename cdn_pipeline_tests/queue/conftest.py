"""Fixtures of the queue's tests."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cdn_pipeline_tests.queue.catalogs import refuse_illegal_transitions, session


@pytest.fixture
def connection(catalog: sa.Engine) -> Iterator[sa.Connection]:
    """A session on a catalog that refuses every transition that is not in the state tables."""
    refuse_illegal_transitions(catalog)
    with session(catalog) as connection:
        yield connection
