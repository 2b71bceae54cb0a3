"""`cost`: the bill of the month, from what the catalog counts and from Cloudflare's figures."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from cdn_pipeline_tests.cli.conftest import Invoke
from cdn_pipeline_tests.cloudflare.figures import ACCOUNT_ID, Figures, running_figures
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID
from cdn_pipeline_tests.queue.catalogs import publish, reference, see


@pytest.fixture(autouse=True)
def _held(connection: sa.Connection) -> None:
    """A published image whose renditions and original are large, encoded in 75 ms."""
    see(connection, reference())
    publish(connection)
    connection.execute(sa.text("UPDATE cdn_image_renditions SET file_size = 1000000000"))
    connection.execute(sa.text("UPDATE cdn_image_assets SET original_file_size = 2000000000"))
    connection.execute(sa.text("UPDATE cdn_image_jobs SET bytes_in = 10, transcode_ms = 75"))


def bill(invoke: Invoke) -> Any:
    return json.loads(invoke("cost", "--json").output)


def test_what_is_held_written_and_encoded_is_told_with_its_price(invoke: Invoke) -> None:
    result = invoke("cost")
    assert result.exit_code == 0, result.output
    for words in (
        "2 objects, 2.0 GB",
        "1 object, 2.0 GB",
        "3 writes in the last 30 days, counted by the catalog",
        "75.0 s of one core to encode 1,000 images",
        "not configured: set CF_API_TOKEN",
        "not counted",
        "egress free",
        "R2's prices of 2026-11-01",
        "that is not deducted here",
    ):
        assert words in result.output


def test_a_month_is_projected_from_what_is_held_and_the_rate_of_thirty_days(invoke: Invoke) -> None:
    found = bill(invoke)
    elapsed = found["month_elapsed"]
    assert 0 <= elapsed <= 1
    assert found["projected"]["storage"] == pytest.approx(4 * 0.015)
    assert found["so_far"]["storage"] == pytest.approx(4 * 0.015 * elapsed)
    assert found["so_far"]["class_a"] == pytest.approx(3 * 4.5e-6)
    assert found["projected"]["class_a"] == pytest.approx(3 * 4.5e-6 * (2 - elapsed))
    assert found["projected"]["class_b"] is None
    assert found["projected"]["total"] == pytest.approx(found["projected"]["storage"] + found["projected"]["class_a"])


def test_writes_of_last_month_count_for_the_rate_and_not_for_this_month(
    invoke: Invoke, connection: sa.Connection
) -> None:
    """Whatever day it is: what was written in the second before the month is in both only by the rate of 30 days."""
    before = "date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' - interval '1 second'"
    connection.execute(sa.text(f"UPDATE cdn_image_renditions SET created_at = {before}"))
    connection.execute(sa.text(f"UPDATE cdn_image_jobs SET completed_at = {before}"))
    assert bill(invoke)["so_far"]["class_a"] == 0


def test_over_the_budget_the_exit_status_says_so(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("cost", "--budget", "100").exit_code == 0
    over = invoke("cost", "--budget", "0.01")
    assert over.exit_code == 1
    assert "Over the budget of 0.01 $ by 0.05 $" in over.output
    monkeypatch.setenv("MONTHLY_BUDGET_USD", "0.01")
    assert invoke("cost").exit_code == 1
    assert invoke("cost", "--budget", "1").exit_code == 0


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Iterator[Figures]:
    with running_figures() as figures:
        values = {
            "CF_API_TOKEN": TOKEN,
            "CF_ZONE_ID": ZONE_ID,
            "CF_ACCOUNT_ID": ACCOUNT_ID,
            "CF_API_URL": figures.api_url,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        yield figures


def test_what_cloudflare_counts_is_in_the_bill(invoke: Invoke, figures: Figures) -> None:
    result = invoke("cost")
    assert result.exit_code == 0, result.output
    assert figures.asked
    assert "not configured" not in result.output
    assert "0 of the CDN in the last 30 days" in result.output


def test_a_cloudflare_that_refuses_is_told_and_the_rest_is_counted(invoke: Invoke, figures: Figures) -> None:
    figures.answers = [
        (403, {}, {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]})
    ] * 9
    result = invoke("cost", "--budget", "100")
    assert result.exit_code == 0, result.output
    assert "Authentication error" in result.output
    assert "counted by the catalog" in result.output
