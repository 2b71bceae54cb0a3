"""Whose pictures frontends are given CDN URLs of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "cdn_delivery_policy",
        sa.Column("only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("percentage", sa.SmallInteger(), server_default="100", nullable=False),
        sa.Column("off_since", _TIME, nullable=True),
        sa.Column("off_until", _TIME, nullable=True),
        sa.CheckConstraint("only_row", name=op.f("ck_cdn_delivery_policy_only_row")),
        sa.CheckConstraint("percentage BETWEEN 0 AND 100", name=op.f("ck_cdn_delivery_policy_percentage")),
        sa.PrimaryKeyConstraint("only_row", name=op.f("pk_cdn_delivery_policy")),
    )


def downgrade() -> None:
    op.drop_table("cdn_delivery_policy")
