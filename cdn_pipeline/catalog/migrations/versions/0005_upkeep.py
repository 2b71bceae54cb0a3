"""Upkeep: archived jobs, which objects were removed, and who refers to an original."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cdn_removed_objects",
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("marked_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("reference", name=op.f("pk_cdn_removed_objects")),
    )
    op.add_column("cdn_image_jobs", sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.create_index(
        "ix_cdn_image_jobs_failed",
        "cdn_image_jobs",
        ["completed_at"],
        postgresql_where=sa.text("status = 'failed' AND archived_at IS NULL"),
    )
    op.create_index("ix_cdn_image_assets_original_sha256", "cdn_image_assets", ["original_sha256"])
    op.create_index("ix_cdn_image_renditions_original_sha256", "cdn_image_renditions", ["original_sha256"])


def downgrade() -> None:
    op.drop_index("ix_cdn_image_renditions_original_sha256", "cdn_image_renditions")
    op.drop_index("ix_cdn_image_assets_original_sha256", "cdn_image_assets")
    op.drop_index("ix_cdn_image_jobs_failed", "cdn_image_jobs")
    op.drop_column("cdn_image_jobs", "archived_at")
    op.drop_table("cdn_removed_objects")
