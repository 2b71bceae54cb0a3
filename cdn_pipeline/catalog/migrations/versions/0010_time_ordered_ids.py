"""Ids of new images, jobs and renditions begin with the time; those that exist stay as they are."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TABLES = ("cdn_image_assets", "cdn_image_jobs", "cdn_image_renditions")


def upgrade() -> None:
    op.execute("""
    CREATE FUNCTION cdn_time_ordered_id() RETURNS uuid VOLATILE PARALLEL SAFE LANGUAGE sql AS $$
        SELECT CAST(encode(set_bit(set_bit(overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send(CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)) FROM 3) FROM 1
        ), 52, 1), 53, 1), 'hex') AS uuid)
    $$
    """)
    for table in _TABLES:
        op.alter_column(table, "id", server_default=sa.text("cdn_time_ordered_id()"))


def downgrade() -> None:
    for table in _TABLES:
        op.alter_column(table, "id", server_default=sa.text("gen_random_uuid()"))
    op.execute("DROP FUNCTION cdn_time_ordered_id()")
