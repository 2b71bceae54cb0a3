"""Alembic's entry: `cdn_pipeline.catalog.migrate` hands the connection over; there is no alembic.ini."""

from alembic import context

from cdn_pipeline.catalog.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
