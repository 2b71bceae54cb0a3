"""The clock: watermarks, rollouts, what statistics need of jobs, and AVIF in the view of image URLs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_FIRST_COLUMNS = """
SELECT a.id AS asset_id, a.collection, a.source_type, a.source_id, a.owner_id, a.media_id, a.taken_at,
       a.processing_status,
       s.path AS cdn_path_256, d.base_url || s.path AS cdn_url_256, s.content_hash AS content_hash_256,
       s.width AS width_256, s.height AS height_256, s.file_size AS file_size_256,
       l.path AS cdn_path_512, d.base_url || l.path AS cdn_url_512, l.content_hash AS content_hash_512,
       l.width AS width_512, l.height AS height_512, l.file_size AS file_size_512"""

_FIRST_TABLES = """
FROM cdn_image_assets a
CROSS JOIN cdn_delivery d
LEFT JOIN cdn_image_renditions s
       ON s.asset_id = a.id AND s.size_name = '256' AND s.format = 'webp' AND s.state = 'current'
LEFT JOIN cdn_image_renditions l
       ON l.asset_id = a.id AND l.size_name = '512' AND l.format = 'webp' AND l.state = 'current'"""

IMAGE_URLS_VIEW = f"""
CREATE OR REPLACE VIEW cdn_image_urls AS
{_FIRST_COLUMNS},
       sa.path AS cdn_path_256_avif, d.base_url || sa.path AS cdn_url_256_avif, sa.file_size AS file_size_256_avif,
       la.path AS cdn_path_512_avif, d.base_url || la.path AS cdn_url_512_avif, la.file_size AS file_size_512_avif
{_FIRST_TABLES}
LEFT JOIN cdn_image_renditions sa
       ON sa.asset_id = a.id AND sa.size_name = '256' AND sa.format = 'avif' AND sa.state = 'current'
LEFT JOIN cdn_image_renditions la
       ON la.asset_id = a.id AND la.size_name = '512' AND la.format = 'avif' AND la.state = 'current'
"""


def upgrade() -> None:
    op.create_table(
        "cdn_rollouts",
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("recipe", sa.String(length=40), nullable=False),
        sa.Column("recipe_version", sa.Integer(), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("paused_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("collection", "recipe", name=op.f("pk_cdn_rollouts")),
    )
    op.create_table(
        "cdn_source_watermarks",
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("shard", sa.String(length=2), nullable=False),
        sa.Column("scanned_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("recent_rows", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fully_scanned_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("collection", "shard", name=op.f("pk_cdn_source_watermarks")),
    )
    op.add_column(
        "cdn_image_assets", sa.Column("seen_alive", sa.Boolean(), server_default=sa.text("true"), nullable=False)
    )
    op.add_column("cdn_image_assets", sa.Column("removed_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.execute("UPDATE cdn_image_assets SET seen_alive = coalesce(url_expires_at > created_at, true)")
    op.add_column("cdn_image_jobs", sa.Column("rollout", sa.String(length=40), nullable=True))
    op.add_column(
        "cdn_image_jobs",
        sa.Column("busy", postgresql.TSTZMULTIRANGE(), server_default=sa.text("'{}'"), nullable=False),
    )
    op.execute(
        "UPDATE cdn_image_jobs SET busy = tstzmultirange(tstzrange(started_at, completed_at)) "
        "WHERE completed_at >= started_at"
    )
    op.execute(IMAGE_URLS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW cdn_image_urls")
    op.execute(f"CREATE VIEW cdn_image_urls AS {_FIRST_COLUMNS} {_FIRST_TABLES}")
    op.drop_column("cdn_image_jobs", "busy")
    op.drop_column("cdn_image_jobs", "rollout")
    op.drop_column("cdn_image_assets", "removed_at")
    op.drop_column("cdn_image_assets", "seen_alive")
    op.drop_table("cdn_source_watermarks")
    op.drop_table("cdn_rollouts")
