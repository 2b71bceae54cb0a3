"""What a month costs: what we hold and what we wrote, and reads where somebody counts them."""

import pytest
import sqlalchemy as sa

from cdn_pipeline.observe.cost import Operations, monthly_cost, own_writes
from cdn_pipeline.observe.storage import Storage
from cdn_pipeline_tests.queue.catalogs import publish, reference, see, session


def test_a_month_costs_what_r2_lists() -> None:
    cost = monthly_cost(Storage(100 * 10**9, 1, 900 * 10**9, 1), Operations(2_000_000, 10_000_000))
    assert (cost.storage, cost.class_a, cost.class_b) == pytest.approx((15.0, 9.0, 3.6))
    assert cost.total == pytest.approx(27.6)
    assert cost.words == "a month costs 27.60 $: storage 15.00 $, writes 9.00 $, reads 3.60 $"


def test_reads_that_nobody_counts_are_left_out_and_said_to_be() -> None:
    cost = monthly_cost(Storage(0, 0, 0, 0), Operations(1_000_000, None))
    assert cost.class_b is None
    assert cost.total == pytest.approx(4.5)
    assert "reads not counted" in cost.words


def test_writes_are_the_renditions_and_originals_of_a_month(catalog: sa.Engine) -> None:
    with session(catalog) as connection:
        see(connection, reference())
        publish(connection)
        connection.execute(sa.text("UPDATE cdn_image_jobs SET bytes_in = 10"))
        assert own_writes(connection) == 3  # two sizes and their original
        for table, column in (("cdn_image_renditions", "created_at"), ("cdn_image_jobs", "completed_at")):
            connection.execute(sa.text(f"UPDATE {table} SET {column} = now() - interval '31 days'"))
        assert own_writes(connection) == 0
