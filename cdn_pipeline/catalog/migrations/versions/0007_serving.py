"""For those who read: placeholders, storage by the hour, heartbeats, refreshes, probes, alerts, and who did what."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "cdn_alerts",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("rule", sa.String(length=60), nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("severity", sa.String(length=10), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), server_default="pending", nullable=False),
        sa.Column("since", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("fired_at", _TIME, nullable=True),
        sa.Column("clear_since", _TIME, nullable=True),
        sa.Column("resolved_at", _TIME, nullable=True),
        sa.Column("told_severity", sa.String(length=10), nullable=True),
        sa.Column("told_firing_at", _TIME, nullable=True),
        sa.Column("told_resolved_at", _TIME, nullable=True),
        sa.Column("untold", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("tell_after", _TIME, nullable=True),
        sa.Column("telling_failed", sa.Text(), nullable=True),
        sa.Column("updated_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name=op.f("ck_cdn_alerts_severity")),
        sa.CheckConstraint("state IN ('pending', 'firing', 'resolved')", name=op.f("ck_cdn_alerts_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_alerts")),
    )
    op.create_index(
        "ix_cdn_alerts_resolved_at",
        "cdn_alerts",
        ["resolved_at"],
        unique=False,
        postgresql_where=sa.text("state = 'resolved'"),
    )
    op.create_index(
        "uq_cdn_alerts_active",
        "cdn_alerts",
        ["rule", "subject"],
        unique=True,
        postgresql_where=sa.text("state <> 'resolved'"),
    )
    op.create_table(
        "cdn_audit",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("affected", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_audit")),
    )
    op.create_index("ix_cdn_audit_at", "cdn_audit", ["at"], unique=False)
    op.create_table(
        "cdn_delivery_probes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("probed_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("problem", sa.String(length=40), nullable=True),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("cold_ms", sa.REAL(), nullable=True),
        sa.Column("warm_ms", sa.REAL(), nullable=True),
        sa.Column("cold_cache", sa.String(length=20), nullable=True),
        sa.Column("warm_cache", sa.String(length=20), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_delivery_probes")),
    )
    op.create_index("ix_cdn_delivery_probes_probed_at", "cdn_delivery_probes", ["probed_at"], unique=False)
    op.create_table(
        "cdn_heartbeats",
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("beat_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cdn_heartbeats")),
    )
    op.create_table(
        "cdn_refreshes",
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("shard", sa.String(length=2), nullable=False),
        sa.Column("requested_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("launched", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("answer", sa.String(length=40), nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cdn_refreshes")),
    )
    op.create_index(
        "ix_cdn_refreshes_owner_id", "cdn_refreshes", ["collection", "owner_id", "requested_at"], unique=False
    )
    op.create_index("ix_cdn_refreshes_requested_at", "cdn_refreshes", ["requested_at"], unique=False)
    op.create_index(
        "ix_cdn_refreshes_expired",
        "cdn_refreshes",
        ["collection", "finished_at"],
        unique=False,
        postgresql_where=sa.text("answer = 'expired'"),
    )
    op.create_index(
        "uq_cdn_refreshes_open",
        "cdn_refreshes",
        ["collection", "owner_id"],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.add_column("cdn_image_assets", sa.Column("placeholder", sa.String(length=60), nullable=True))
    op.add_column("cdn_processing_stats", sa.Column("storage_bytes", sa.BigInteger(), nullable=True))
    op.add_column("cdn_processing_stats", sa.Column("storage_objects", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("cdn_processing_stats", "storage_objects")
    op.drop_column("cdn_processing_stats", "storage_bytes")
    op.drop_column("cdn_image_assets", "placeholder")
    op.drop_index("uq_cdn_refreshes_open", table_name="cdn_refreshes", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_index(
        "ix_cdn_refreshes_expired", table_name="cdn_refreshes", postgresql_where=sa.text("answer = 'expired'")
    )
    op.drop_index("ix_cdn_refreshes_requested_at", table_name="cdn_refreshes")
    op.drop_index("ix_cdn_refreshes_owner_id", table_name="cdn_refreshes")
    op.drop_table("cdn_refreshes")
    op.drop_table("cdn_heartbeats")
    op.drop_index("ix_cdn_delivery_probes_probed_at", table_name="cdn_delivery_probes")
    op.drop_table("cdn_delivery_probes")
    op.drop_index("ix_cdn_audit_at", table_name="cdn_audit")
    op.drop_table("cdn_audit")
    op.drop_index("uq_cdn_alerts_active", table_name="cdn_alerts", postgresql_where=sa.text("state <> 'resolved'"))
    op.drop_index("ix_cdn_alerts_resolved_at", table_name="cdn_alerts", postgresql_where=sa.text("state = 'resolved'"))
    op.drop_table("cdn_alerts")
