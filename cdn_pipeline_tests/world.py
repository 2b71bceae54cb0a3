"""A small world for tests: a running origin, and an application database that points at it.

A test module imports the fixtures it uses together with those they stand on:

    from cdn_pipeline_tests.postgres import empty_database, postgres_server  # noqa: F401
    from cdn_pipeline_tests.world import origin, picture_folder, small_world  # noqa: F401
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import Engine, create_engine

from cdn_pipeline.demo import app_database
from cdn_pipeline.demo.faults import NO_FAULTS, Misbehaviour
from cdn_pipeline.demo.origin import Origin, running_origin


@dataclass(frozen=True, slots=True)
class World:
    """An application database whose URLs the origin serves."""

    origin: Origin
    engine: Engine
    profile_ids: Sequence[uuid.UUID]
    post_ids: Sequence[uuid.UUID]


class SmallWorld(Protocol):
    """What the fixture `small_world` gives: call it once to get a world."""

    def __call__(self, *, profiles: int = 4, posts: int = 3, seed: int = 1, nasty_rows: bool = False) -> World: ...


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures are made once per session."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def origin(picture_folder: Path) -> Iterator[Origin]:
    """An origin that behaves, until a test orders faults."""
    with running_origin(picture_folder, misbehaviour=Misbehaviour(NO_FAULTS), slow_seconds=0.5) as origin:
        yield origin


@pytest.fixture
def small_world(origin: Origin, empty_database: str) -> Iterator[SmallWorld]:
    engine = create_engine(empty_database)

    def make(*, profiles: int = 4, posts: int = 3, seed: int = 1, nasty_rows: bool = False) -> World:
        app_database.create_tables(engine)
        population = app_database.populate(
            engine,
            origin.signer,
            profiles=profiles,
            posts_per_profile=posts,
            seed=seed,
            now=origin.now(),
            nasty_rows=nasty_rows,
        )
        return World(origin, engine, population.profile_ids, population.post_ids)

    yield make
    engine.dispose()
