"""The deployment that is examined: its settings and databases, each opened when a check first asks for it."""

from contextlib import ExitStack
from functools import cached_property
from typing import Self

import sqlalchemy as sa

from cdn_pipeline.catalog.sessions import open_catalog, open_source_database, open_unmigrated_catalog
from cdn_pipeline.settings import Settings, load_settings


class Deployment:
    """What the environment names. A context manager: the embedded Postgres is started once for all checks.

    `ask_provider`: whether a check may put a question to the provider of fresh URLs, which costs.
    """

    def __init__(self, *, ask_provider: bool = False) -> None:
        self.ask_provider = ask_provider
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @cached_property
    def settings(self) -> Settings:
        """Raises `ConfigurationError` if the environment is incomplete or contradicts itself."""
        return load_settings()

    @cached_property
    def catalog(self) -> sa.Engine:
        """As it is; the embedded one is migrated, as by every command. Nothing is connected to yet."""
        open_database = open_catalog if self.settings.embedded_catalog else open_unmigrated_catalog
        return self._resources.enter_context(open_database(self.settings))

    @cached_property
    def source(self) -> sa.Engine:
        """Read only. Nothing is connected to yet."""
        return self._resources.enter_context(open_source_database(self.settings))
