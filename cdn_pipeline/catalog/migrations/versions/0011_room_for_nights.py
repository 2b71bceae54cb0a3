"""Pages of images keep room for what a night writes; those that are full get it as their rows are written again."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE cdn_image_assets SET (fillfactor = 60)")


def downgrade() -> None:
    op.execute("ALTER TABLE cdn_image_assets RESET (fillfactor)")
