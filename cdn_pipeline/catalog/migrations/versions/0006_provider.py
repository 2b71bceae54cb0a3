"""The provider of fresh URLs: what it was asked."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "cdn_provider_usage",
        sa.Column("provider", sa.String(length=20), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("requests", sa.Integer(), server_default="0", nullable=False),
        sa.Column("answered", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_request_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("provider", "day", name=op.f("pk_cdn_provider_usage")),
    )
    op.create_table(
        "cdn_provider_owners",
        sa.Column("collection", sa.String(length=40), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("asked_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("next_ask_at", _TIME, nullable=False),
        sa.Column("answer", sa.String(length=20), nullable=True),
        sa.Column("refusals", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("collection", "owner_id", name=op.f("pk_cdn_provider_owners")),
    )


def downgrade() -> None:
    op.drop_table("cdn_provider_owners")
    op.drop_table("cdn_provider_usage")
