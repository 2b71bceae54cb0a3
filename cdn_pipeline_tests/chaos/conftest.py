"""Fixtures: a place for disasters."""

from collections.abc import Iterator

import pytest

from benchmarks.chaos.place import Place, opened_place


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with opened_place() as place:
        yield place
