"""Erasure: tombstones, what was taken down, and jobs that outlive their image."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_IMAGE_OF_A_JOB = "fk_cdn_image_jobs_asset_id_cdn_image_assets"
_OPEN_HAS_IMAGE = "ck_cdn_image_jobs_open_has_image"


def upgrade() -> None:
    op.create_table(
        "cdn_tombstones",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("source_type", sa.String(length=20), nullable=True),
        sa.Column("source_id", sa.Text(), nullable=True),
        sa.Column("media_id", sa.String(length=100), nullable=True),
        sa.Column("identities", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("asset_id", sa.UUID(), nullable=True),
        sa.Column("erasure_id", sa.UUID(), nullable=False),
        sa.Column("stored_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "num_nulls(source_type, source_id, media_id) IN (0, 3)", name=op.f("ck_cdn_tombstones_owner_or_image")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_tombstones")),
        sa.UniqueConstraint(
            "collection",
            "owner_id",
            "source_type",
            "source_id",
            "media_id",
            name="uq_cdn_tombstones_subject",
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index("ix_cdn_tombstones_image", "cdn_tombstones", ["source_type", "source_id", "media_id"], unique=False)
    op.create_table(
        "cdn_erasures",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.String(length=10), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=20), server_default="open", nullable=False),
        sa.Column("images", sa.Integer(), server_default="0", nullable=False),
        sa.Column("renditions", sa.Integer(), server_default="0", nullable=False),
        sa.Column("originals", sa.Integer(), server_default="0", nullable=False),
        sa.Column("kept", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cdn_verified", sa.Boolean(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("scope IN ('owner', 'image')", name=op.f("ck_cdn_erasures_scope")),
        sa.CheckConstraint("state IN ('open', 'purge_pending', 'done', 'lifted')", name=op.f("ck_cdn_erasures_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_erasures")),
    )
    op.create_table(
        "cdn_erasure_objects",
        sa.Column("erasure_id", sa.UUID(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("kept", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("deleted_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["erasure_id"],
            ["cdn_erasures.id"],
            name=op.f("fk_cdn_erasure_objects_erasure_id_cdn_erasures"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("erasure_id", "reference", name=op.f("pk_cdn_erasure_objects")),
    )
    op.alter_column("cdn_image_jobs", "asset_id", nullable=True)
    op.drop_constraint(_IMAGE_OF_A_JOB, "cdn_image_jobs", type_="foreignkey")
    op.create_foreign_key(
        _IMAGE_OF_A_JOB, "cdn_image_jobs", "cdn_image_assets", ["asset_id"], ["id"], ondelete="SET NULL"
    )
    op.create_check_constraint(
        op.f(_OPEN_HAS_IMAGE), "cdn_image_jobs", "asset_id IS NOT NULL OR status NOT IN ('queued', 'processing')"
    )


def downgrade() -> None:
    op.drop_constraint(op.f(_OPEN_HAS_IMAGE), "cdn_image_jobs", type_="check")
    op.drop_constraint(_IMAGE_OF_A_JOB, "cdn_image_jobs", type_="foreignkey")
    op.execute("DELETE FROM cdn_image_jobs WHERE asset_id IS NULL")
    op.create_foreign_key(
        _IMAGE_OF_A_JOB, "cdn_image_jobs", "cdn_image_assets", ["asset_id"], ["id"], ondelete="CASCADE"
    )
    op.alter_column("cdn_image_jobs", "asset_id", nullable=False)
    op.drop_table("cdn_erasure_objects")
    op.drop_table("cdn_erasures")
    op.drop_index("ix_cdn_tombstones_image", table_name="cdn_tombstones")
    op.drop_table("cdn_tombstones")
