"""The catalog: images, jobs, renditions, statistics, runs, and the view of image URLs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

IMAGE_URLS_VIEW = """
CREATE VIEW cdn_image_urls AS
SELECT a.id AS asset_id, a.collection, a.source_type, a.source_id, a.owner_id, a.media_id, a.taken_at,
       a.processing_status,
       s.path AS cdn_path_256, d.base_url || s.path AS cdn_url_256, s.content_hash AS content_hash_256,
       s.width AS width_256, s.height AS height_256, s.file_size AS file_size_256,
       l.path AS cdn_path_512, d.base_url || l.path AS cdn_url_512, l.content_hash AS content_hash_512,
       l.width AS width_512, l.height AS height_512, l.file_size AS file_size_512
FROM cdn_image_assets a
CROSS JOIN cdn_delivery d
LEFT JOIN cdn_image_renditions s
       ON s.asset_id = a.id AND s.size_name = '256' AND s.format = 'webp' AND s.state = 'current'
LEFT JOIN cdn_image_renditions l
       ON l.asset_id = a.id AND l.size_name = '512' AND l.format = 'webp' AND l.state = 'current'
"""


def upgrade() -> None:
    op.create_table(
        "cdn_delivery",
        sa.Column("only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.CheckConstraint("only_row", name=op.f("ck_cdn_delivery_only_row")),
        sa.PrimaryKeyConstraint("only_row", name=op.f("pk_cdn_delivery")),
    )
    op.create_table(
        "cdn_image_assets",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("shard", sa.String(length=2), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("source_type", sa.String(length=20), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.Column("media_id", sa.String(length=100), nullable=False),
        sa.Column("taken_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("source_url", sa.Text(), nullable=False),
        sa.Column(
            "fallback_urls", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("identity", sa.String(length=200), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("url_expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("observed_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("source_etag", sa.String(length=255), nullable=True),
        sa.Column("source_last_modified", sa.String(length=64), nullable=True),
        sa.Column("source_content_type", sa.String(length=50), nullable=True),
        sa.Column("original_sha256", sa.String(length=64), nullable=True),
        sa.Column("original_identity", sa.String(length=200), nullable=True),
        sa.Column("original_rank", sa.Integer(), nullable=True),
        sa.Column("original_width", sa.Integer(), nullable=True),
        sa.Column("original_height", sa.Integer(), nullable=True),
        sa.Column("original_format", sa.String(length=10), nullable=True),
        sa.Column("original_file_size", sa.Integer(), nullable=True),
        sa.Column("processing_status", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("processing_started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("processing_completed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("processing_error", sa.Text(), nullable=True),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("processing_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("needs_update", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("last_checked", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("download_time_ms", sa.Integer(), nullable=True),
        sa.Column("processing_time_ms", sa.Integer(), nullable=True),
        sa.Column("upload_time_ms", sa.Integer(), nullable=True),
        sa.Column("total_processing_time_ms", sa.Integer(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "processing_status IN ('pending', 'downloading', 'processing', 'uploading', 'completed', 'failed')",
            name=op.f("ck_cdn_image_assets_processing_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_image_assets")),
        sa.UniqueConstraint(
            "source_type", "source_id", "media_id", name=op.f("uq_cdn_image_assets_source_type_source_id_media_id")
        ),
    )
    op.create_index("ix_cdn_image_assets_owner_id", "cdn_image_assets", ["owner_id"], unique=False)
    op.create_index("ix_cdn_image_assets_shard", "cdn_image_assets", ["shard"], unique=False)
    op.create_index(
        "ix_cdn_image_assets_unfinished",
        "cdn_image_assets",
        ["processing_status", "failure_kind"],
        unique=False,
        postgresql_where=sa.text("processing_status <> 'completed'"),
    )
    op.create_table(
        "cdn_processing_stats",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("date", sa.Date(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("jobs_processed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("jobs_failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("avg_processing_time_ms", sa.Integer(), server_default="0", nullable=False),
        sa.Column("avg_download_time_ms", sa.Integer(), server_default="0", nullable=False),
        sa.Column("avg_upload_time_ms", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total_bytes_processed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("avg_file_size_bytes", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "error_categories", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("peak_queue_depth", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_utilization_percent", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("hour BETWEEN 0 AND 23", name=op.f("ck_cdn_processing_stats_hour")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_processing_stats")),
        sa.UniqueConstraint("date", "hour", name=op.f("uq_cdn_processing_stats_date_hour")),
    )
    op.create_table(
        "cdn_runs",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("lock_key", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(length=100), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_cdn_runs")),
    )
    op.create_index(
        "ix_cdn_runs_open", "cdn_runs", ["run_id"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_table(
        "cdn_image_jobs",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("asset_id", sa.UUID(), nullable=False),
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("shard", sa.String(length=2), nullable=False),
        sa.Column("job_type", sa.String(length=20), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="5", nullable=False),
        sa.Column("stage", sa.String(length=10), server_default="download", nullable=False),
        sa.Column("force", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("source_url", sa.Text(), nullable=False),
        sa.Column(
            "target_sizes", postgresql.ARRAY(sa.Integer()), server_default=sa.text("'{256,512}'"), nullable=False
        ),
        sa.Column("output_format", sa.String(length=10), server_default="webp", nullable=False),
        sa.Column("deadline", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("status", sa.String(length=20), server_default="queued", nullable=False),
        sa.Column(
            "next_attempt_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("held_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("first_started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("completed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("worker_id", sa.String(length=100), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("lease_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_details", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("retry_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_retries", sa.Integer(), server_default="3", nullable=False),
        sa.Column("processing_duration_ms", sa.Integer(), nullable=True),
        sa.Column("download_ms", sa.Integer(), nullable=True),
        sa.Column("transcode_ms", sa.Integer(), nullable=True),
        sa.Column("upload_ms", sa.Integer(), nullable=True),
        sa.Column("bytes_in", sa.BigInteger(), nullable=True),
        sa.Column("bytes_out", sa.BigInteger(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("job_type IN ('ingest', 'update', 'retry')", name=op.f("ck_cdn_image_jobs_job_type")),
        sa.CheckConstraint("stage IN ('download', 'encode', 'publish')", name=op.f("ck_cdn_image_jobs_stage")),
        sa.CheckConstraint(
            "status IN ('queued', 'processing', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_cdn_image_jobs_status"),
        ),
        sa.CheckConstraint("priority BETWEEN 1 AND 10", name=op.f("ck_cdn_image_jobs_priority")),
        sa.ForeignKeyConstraint(
            ["asset_id"],
            ["cdn_image_assets.id"],
            name=op.f("fk_cdn_image_jobs_asset_id_cdn_image_assets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_image_jobs")),
    )
    op.create_index("ix_cdn_image_jobs_asset_id", "cdn_image_jobs", ["asset_id"], unique=False)
    op.create_index(
        "ix_cdn_image_jobs_completed_at",
        "cdn_image_jobs",
        ["completed_at"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.create_index(
        "ix_cdn_image_jobs_due",
        "cdn_image_jobs",
        ["collection", "shard", "priority", "deadline"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND held_at IS NULL"),
    )
    op.create_index(
        "ix_cdn_image_jobs_leased",
        "cdn_image_jobs",
        ["shard", "run_id"],
        unique=False,
        postgresql_where=sa.text("status = 'processing'"),
    )
    op.create_index(
        "uq_cdn_image_jobs_open",
        "cdn_image_jobs",
        ["asset_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('queued', 'processing')"),
    )
    op.create_table(
        "cdn_image_renditions",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("asset_id", sa.UUID(), nullable=False),
        sa.Column("size_name", sa.String(length=20), nullable=False),
        sa.Column("format", sa.String(length=10), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("file_size", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("original_sha256", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.String(length=40), nullable=False),
        sa.Column("recipe_version", sa.Integer(), nullable=False),
        sa.Column("encoder", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("superseded_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('stored', 'current', 'superseded')", name=op.f("ck_cdn_image_renditions_state")),
        sa.ForeignKeyConstraint(
            ["asset_id"],
            ["cdn_image_assets.id"],
            name=op.f("fk_cdn_image_renditions_asset_id_cdn_image_assets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_image_renditions")),
        sa.UniqueConstraint("asset_id", "path", name=op.f("uq_cdn_image_renditions_asset_id_path")),
    )
    op.create_index("ix_cdn_image_renditions_path", "cdn_image_renditions", ["path"], unique=False)
    op.create_index(
        "ix_cdn_image_renditions_superseded_at",
        "cdn_image_renditions",
        ["superseded_at"],
        unique=False,
        postgresql_where=sa.text("state = 'superseded'"),
    )
    op.create_index(
        "uq_cdn_image_renditions_current",
        "cdn_image_renditions",
        ["asset_id", "size_name", "format"],
        unique=True,
        postgresql_where=sa.text("state = 'current'"),
    )
    op.execute(IMAGE_URLS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW cdn_image_urls")
    op.drop_index(
        "uq_cdn_image_renditions_current",
        table_name="cdn_image_renditions",
        postgresql_where=sa.text("state = 'current'"),
    )
    op.drop_index(
        "ix_cdn_image_renditions_superseded_at",
        table_name="cdn_image_renditions",
        postgresql_where=sa.text("state = 'superseded'"),
    )
    op.drop_index("ix_cdn_image_renditions_path", table_name="cdn_image_renditions")
    op.drop_table("cdn_image_renditions")
    op.drop_index(
        "uq_cdn_image_jobs_open",
        table_name="cdn_image_jobs",
        postgresql_where=sa.text("status IN ('queued', 'processing')"),
    )
    op.drop_index(
        "ix_cdn_image_jobs_leased", table_name="cdn_image_jobs", postgresql_where=sa.text("status = 'processing'")
    )
    op.drop_index(
        "ix_cdn_image_jobs_due",
        table_name="cdn_image_jobs",
        postgresql_where=sa.text("status = 'queued' AND held_at IS NULL"),
    )
    op.drop_index(
        "ix_cdn_image_jobs_completed_at",
        table_name="cdn_image_jobs",
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.drop_index("ix_cdn_image_jobs_asset_id", table_name="cdn_image_jobs")
    op.drop_table("cdn_image_jobs")
    op.drop_index("ix_cdn_runs_open", table_name="cdn_runs", postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_table("cdn_runs")
    op.drop_table("cdn_processing_stats")
    op.drop_index(
        "ix_cdn_image_assets_unfinished",
        table_name="cdn_image_assets",
        postgresql_where=sa.text("processing_status <> 'completed'"),
    )
    op.drop_index("ix_cdn_image_assets_shard", table_name="cdn_image_assets")
    op.drop_index("ix_cdn_image_assets_owner_id", table_name="cdn_image_assets")
    op.drop_table("cdn_image_assets")
    op.drop_table("cdn_delivery")
