"""Hosts: rate limit and breaker, shared by all runs, and the host that each job asks first."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_HOST = (
    "coalesce(lower(rtrim(btrim(substring(source_url from "
    "'^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?([[][^]]*[]]|[^:/?#]*)'), '[]'), '.')), '')"
)


def upgrade() -> None:
    op.create_table(
        "cdn_hosts",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("next_turn_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("opened_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("retry_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("times_opened", sa.Integer(), server_default="0", nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(opened_at IS NULL) = (retry_at IS NULL)", name=op.f("ck_cdn_hosts_open")),
        sa.PrimaryKeyConstraint("host", name=op.f("pk_cdn_hosts")),
    )
    # Rewrites the table of jobs: about a second for 200,000.
    op.add_column("cdn_image_jobs", sa.Column("host", sa.Text(), sa.Computed(_HOST, persisted=True), nullable=False))


def downgrade() -> None:
    op.drop_column("cdn_image_jobs", "host")
    op.drop_table("cdn_hosts")
