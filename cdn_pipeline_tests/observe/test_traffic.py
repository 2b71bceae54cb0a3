"""Traffic as Cloudflare tells it, from a stand-in for its analytics."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from cdn_pipeline.observe.traffic import KEPT_SECONDS, Traffic, read_traffic
from cdn_pipeline.settings import Settings
from cdn_pipeline_tests.cloudflare.figures import (
    ACCOUNT_ID,
    DAY,
    Figures,
    asked_for,
    done,
    held,
    refused,
    running_figures,
)
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID


@pytest.fixture
def figures() -> Iterator[Figures]:
    with running_figures() as figures:
        yield figures


def configured(figures: Figures, **more: Any) -> Settings:
    """Two R2 buckets behind a CDN."""
    values = {
        "cf_api_token": TOKEN,
        "cf_zone_id": ZONE_ID,
        "cf_account_id": ACCOUNT_ID,
        "cf_api_url": figures.api_url,
        "cdn_base_url": "https://cdn.example",
        "object_store_url": "s3://renditions",
        "originals_store_url": "s3://originals",
        "r2_access_key_id": "key",
        "r2_secret_access_key": "secret",
        "source_database_url": "postgresql://127.0.0.1/source",
        "catalog_database_url": "postgresql://127.0.0.1/catalog",
        **more,
    }
    return Settings(_env_file=None, **values)  # type: ignore[call-arg]


@pytest.mark.parametrize("missing", [["cf_account_id"], ["cf_api_token", "cf_zone_id"]])
def test_without_a_token_zone_and_account_nothing_is_asked(figures: Figures, missing: list[str]) -> None:
    more = {"r2_endpoint_url": "http://127.0.0.1:9"} | dict.fromkeys(missing)
    assert read_traffic(configured(figures, **more)) is None
    assert figures.asked == []


def test_a_month_is_added_up_day_by_day_and_both_buckets_are_one_figure(figures: Figures) -> None:
    figures.requests = [
        asked_for(98, "hit", timedelta(hours=2)),
        asked_for(2, "miss", timedelta(hours=3)),
        asked_for(1000, "miss", timedelta(days=20), interval=10.0),
        asked_for(5000, "hit", timedelta(days=31)),
    ]
    figures.operations = {
        "renditions": [done("PutObject", 20), done("GetObject", 5)],
        "originals": [done("PutObject", 10)],
    }
    figures.storage = {"renditions": [held(3000, 20)], "originals": [held(9000, 10)]}
    assert read_traffic(configured(figures)) == Traffic(
        hit_ratio=0.98,
        requests_1d=100,
        requests_30d=1100,
        edge_bytes_30d=1_100_000,
        class_a_operations=30,
        class_b_operations=5,
        storage_bytes=12_000,
        storage_objects=30,
        sampled=True,
    )


def test_a_plan_that_remembers_a_week_tells_a_day_and_no_month(figures: Figures) -> None:
    figures.furthest = 8 * DAY
    figures.requests = [asked_for(100, "hit", timedelta(hours=2))]
    found = read_traffic(configured(figures))
    assert found
    assert (found.requests_1d, found.hit_ratio, found.requests_30d, found.edge_bytes_30d) == (100, 1.0, None, None)
    assert found.problem is None


def test_a_plan_that_remembers_a_day_is_not_asked_for_more(figures: Figures) -> None:
    figures.furthest = DAY
    figures.requests = [asked_for(100, "hit", timedelta(hours=2))]
    found = read_traffic(configured(figures))
    assert found
    assert (found.requests_1d, found.problem) == (100, None)


def test_what_is_refused_is_told_in_words_beside_what_is_not(figures: Figures) -> None:
    figures.answers = [(200, {}, refused("not authorized for that zone", code="authz"))]
    figures.operations = {"renditions": [done("PutObject", 20)]}
    found = read_traffic(configured(figures))
    assert found
    assert (found.hit_ratio, found.requests_30d, found.sampled) == (None, None, None)
    assert found.class_a_operations == 20
    assert "not authorized" in (found.problem or "")
    assert TOKEN not in repr(found)


def test_storage_of_one_bucket_alone_is_no_figure_of_both(figures: Figures) -> None:
    figures.storage = {"renditions": [held(3000, 20)]}
    found = read_traffic(configured(figures))
    assert found
    assert (found.storage_bytes, found.storage_objects, found.problem) == (None, None, None)


def test_stores_elsewhere_have_no_figures_of_r2(figures: Figures) -> None:
    folders = {
        "object_store_url": "file:///tmp/objects",
        "originals_store_url": "file:///tmp/originals",
        "r2_access_key_id": None,
        "r2_secret_access_key": None,
    }
    found = read_traffic(configured(figures, **folders))
    assert found
    assert (found.requests_30d, found.class_a_operations, found.storage_bytes) == (0, None, None)
    assert {name for name, _ in figures.asked} == {"settings", "httpRequestsAdaptiveGroups"}


def test_a_bucket_of_a_jurisdiction_is_asked_for_by_its_longer_name(figures: Figures) -> None:
    read_traffic(configured(figures, r2_endpoint_url=f"https://{ACCOUNT_ID}.eu.r2.cloudflarestorage.com"))
    asked = {variables["bucket"] for name, variables in figures.asked if name.startswith("r2")}
    assert asked == {"eu_renditions", "eu_originals"}


def test_within_five_minutes_cloudflare_is_asked_once(figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10_000.0
    monkeypatch.setattr("cdn_pipeline.observe.traffic.time", SimpleNamespace(monotonic=lambda: now))
    settings = configured(figures)
    first = read_traffic(settings)
    asked = len(figures.asked)
    assert read_traffic(settings) is first
    assert len(figures.asked) == asked
    now += KEPT_SECONDS
    read_traffic(settings)
    assert len(figures.asked) == 2 * asked
