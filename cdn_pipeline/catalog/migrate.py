"""Migrations of the catalog, run by `cdn-pipeline migrate` and by themselves on the embedded database."""

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from cdn_pipeline.catalog.tables import delivery

if TYPE_CHECKING:
    from alembic.config import Config

# Any constant will do: it keeps two processes that start at once from migrating at once.
_MIGRATION_LOCK = 0x63646E5F6D696772


class CatalogOutdatedError(Exception):
    """The catalog's schema is not the one this code was written for; the message says what to run."""


def migrate(engine: sa.Engine, base_url: str) -> None:
    """Brings the schema to the newest version and writes the base URL that the view `cdn_image_urls` uses."""
    from alembic import command

    with engine.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.execute(sa.delete(delivery))
        connection.execute(sa.insert(delivery).values(base_url=base_url))


def require_current(engine: sa.Engine, base_url: str) -> None:
    """Checks that `migrate` has been run since this code or the base URL changed.

    Raises:
        CatalogOutdatedError: it has not.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    wanted = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
        if found != wanted:
            raise CatalogOutdatedError(
                f"the catalog is at schema version {found or 'none'}, this code wants {wanted}: "
                "run `cdn-pipeline migrate`"
            )
        written = connection.scalar(sa.select(delivery.c.base_url))
        if written != base_url:
            raise CatalogOutdatedError(
                f"the catalog says the CDN is at {written}, CDN_BASE_URL says {base_url}: run `cdn-pipeline migrate`"
            )


def _alembic_config() -> "Config":
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))  # % begins an interpolation
    return config
