"""Cloudflare's figures, against a stand-in for its GraphQL API on this machine."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import stamina
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from cdn_pipeline.cloudflare.analytics import (
    NO_REQUESTS,
    Analytics,
    AnalyticsError,
    BucketOperations,
    BucketStorage,
    Limits,
    Requests,
)
from cdn_pipeline_tests.cloudflare.figures import (
    ACCOUNT_ID,
    DAY,
    Answer,
    Figures,
    asked_for,
    done,
    held,
    refused,
    running_figures,
)
from cdn_pipeline_tests.cloudflare.zone import TOKEN, ZONE_ID

HOST = "cdn.example"
HOUR = timedelta(hours=1)


@pytest.fixture
def figures() -> Iterator[Figures]:
    with running_figures() as figures:
        yield figures


def requests(figures: Figures, days: float = 1, token: str = TOKEN) -> Requests:
    """Of that many days until now."""
    now = datetime.now(UTC).replace(microsecond=0)
    with figures.client(token) as client:
        return client.requests(ZONE_ID, HOST, now - timedelta(days=days), now, client.limits(ZONE_ID))


def test_requests_are_told_by_what_the_cache_did_with_the_pictures(figures: Figures) -> None:
    figures.requests = [
        asked_for(90, "hit", HOUR),
        asked_for(5, "revalidated", HOUR, status=304),
        asked_for(3, "miss", HOUR),
        asked_for(2, "expired", HOUR, status=206),
        asked_for(50, "dynamic", HOUR),  # another page of the host: the cache was not asked
        asked_for(40, "miss", HOUR, status=404),
    ]
    found = requests(figures)
    assert found == Requests(count=190, edge_bytes=190_000, cached=95, cacheable=100, sampled=False)
    assert found.hit_ratio == 0.95


def test_without_pictures_there_is_no_hit_ratio(figures: Figures) -> None:
    assert requests(figures) == NO_REQUESTS
    assert NO_REQUESTS.hit_ratio is None


def test_estimates_are_told_as_such(figures: Figures) -> None:
    figures.requests = [asked_for(10, "hit", HOUR), asked_for(1000, "hit", HOUR, interval=10.0)]
    assert requests(figures).sampled


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    longest=st.sampled_from([3600, 50_000, DAY, 7 * DAY, 31 * DAY]),
    ages=st.lists(st.integers(1, 3 * DAY - 60), max_size=20),
)
def test_however_much_a_plan_allows_at_once_every_request_counts_once(
    figures: Figures, longest: int, ages: list[int]
) -> None:
    figures.asked.clear()
    figures.longest = longest
    figures.requests = [asked_for(1, "hit", timedelta(seconds=age)) for age in ages]
    assert requests(figures, days=3).count == len(ages)
    spans = [(asked["start"], asked["end"]) for name, asked in figures.asked if name == "httpRequestsAdaptiveGroups"]
    assert all(end == start for (_, end), (start, _) in pairwise(spans))


def test_a_plan_without_analytics_is_said_so(figures: Figures) -> None:
    figures.enabled = False
    with pytest.raises(AnalyticsError, match="plan"):
        requests(figures)


def test_an_answer_that_may_lack_groups_is_refused(figures: Figures) -> None:
    figures.page = 2
    figures.requests = [asked_for(1, "hit", HOUR), asked_for(1, "miss", HOUR), asked_for(1, "expired", HOUR)]
    with pytest.raises(AnalyticsError, match="more groups"):
        requests(figures)


def test_operations_are_counted_by_what_they_cost(figures: Figures) -> None:
    figures.operations["pictures"] = [
        done("PutObject", 10),
        done("PutObject", 5, status=412),  # billed as well
        done("PutObject", 99, status=401),
        done("ListObjectsV2", 3),
        done("WhatWillBe", 1),
        done("GetObject", 7),
        done("HeadObject", 2, status=404),
        done("DeleteObject", 1000),
    ]
    now = datetime.now(UTC)
    with figures.client() as client:
        assert client.operations(ACCOUNT_ID, "pictures", now - HOUR, now) == BucketOperations(class_a=19, class_b=9)
        assert client.operations(ACCOUNT_ID, "another", now - HOUR, now) == BucketOperations(0, 0)


def test_storage_is_what_was_measured_last(figures: Figures) -> None:
    figures.storage["pictures"] = [held(2_000_000, 30, metadata=5_000), held(1, 1)]
    now = datetime.now(UTC)
    with figures.client() as client:
        assert client.storage(ACCOUNT_ID, "pictures", now - HOUR, now) == BucketStorage(2_005_000, 30)
        assert client.storage(ACCOUNT_ID, "another", now - HOUR, now) is None


def test_a_zone_or_account_that_the_token_does_not_see_is_a_failure(figures: Figures) -> None:
    now = datetime.now(UTC)
    with figures.client() as client:
        with pytest.raises(AnalyticsError, match="no such zone or account"):
            client.limits("no such zone")
        with pytest.raises(AnalyticsError, match="no such zone or account"):
            client.storage("no such account", "pictures", now - HOUR, now)


@pytest.mark.parametrize(
    "answer",
    [
        (503, {}, b"<html>unavailable</html>"),
        (500, {"Retry-After": "0"}, b""),
        (429, {"Retry-After": "0"}, refused("limit reached, please try reduced time period")),
        (200, {}, refused("unable to execute query, please try again later")),
    ],
)
def test_what_passes_is_tried_again(figures: Figures, answer: Answer) -> None:
    figures.answers = [answer]
    figures.requests = [asked_for(3, "hit", HOUR)]
    assert requests(figures).count == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((429, {}, refused("rate limiter budget depleted, try again after 5 minutes")), "429.*budget depleted"),
        ((429, {"Retry-After": "300"}, refused("limit reached")), "429"),
        ((403, {}, {"errors": [{"code": 10000, "message": "Authentication error"}]}), r"\(10000\).*CF_API_TOKEN"),
        ((200, {}, refused("not authorized for that account", code="authz")), "not authorized.*CF_API_TOKEN"),
        ((200, {}, refused("cannot request data older than 2678400s")), "2678400s"),
        ((200, {}, {"data": None, "errors": "many"}), "without a reason"),
        ((200, {}, b"\xff"), "without a reason"),
        ((200, {}, {"data": {"viewer": {"zones": [{"settings": None}]}}}), "another shape"),
        ((200, {}, {"data": {"viewer": None}, "errors": None}), "another shape"),
        ((302, {"Location": "/elsewhere"}, b""), "302"),
    ],
)
def test_what_does_not_pass_is_a_failure_at_once(figures: Figures, answer: Answer, words: str) -> None:
    figures.answers = [answer]
    with pytest.raises(AnalyticsError, match=words):
        requests(figures)
    assert len(figures.asked) == 1


def test_a_group_of_another_shape_is_a_failure(figures: Figures) -> None:
    group: dict[str, Any] = asked_for(1, "hit", HOUR)
    del group["dimensions"]
    figures.requests = [group]
    with pytest.raises(AnalyticsError, match=r"another shape.*dimensions"):
        requests(figures)


def test_an_operation_without_a_name_is_a_failure_in_plain_words(figures: Figures) -> None:
    group: dict[str, Any] = done("PutObject", 1)
    group["dimensions"]["actionType"] = None
    figures.operations["pictures"] = [group]
    now = datetime.now(UTC)
    with figures.client() as client, pytest.raises(AnalyticsError, match=r"another shape than documented$"):
        client.operations(ACCOUNT_ID, "pictures", now - HOUR, now)


@pytest.mark.parametrize(("limit", "value"), [("longest", 0), ("longest", -1), ("furthest", 0), ("page", 0)])
def test_a_plan_that_allows_no_question_is_a_failure_in_plain_words(figures: Figures, limit: str, value: int) -> None:
    setattr(figures, limit, value)
    with pytest.raises(AnalyticsError, match="plan allows no question"):
        requests(figures)


def test_a_plan_beyond_all_time_is_a_failure_in_plain_words(figures: Figures) -> None:
    figures.longest = 10**18
    with pytest.raises(AnalyticsError, match=r"another shape than documented$"):
        requests(figures)


def test_a_refused_token_is_never_shown(figures: Figures) -> None:
    with pytest.raises(AnalyticsError) as caught:
        requests(figures, token="another-token")
    assert "another-token" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_an_api_that_cannot_be_reached_is_a_failure_that_says_so() -> None:
    with running_figures() as figures:
        address = figures.api_url  # nobody listens there any more
    with (
        Analytics(SecretStr(TOKEN), api_url=address) as client,
        stamina.set_testing(True, attempts=1),
        pytest.raises(AnalyticsError, match="reached: ConnectError") as caught,
    ):
        client.limits(ZONE_ID)
    assert TOKEN not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_limits_are_what_the_plan_says(figures: Figures) -> None:
    figures.longest, figures.furthest, figures.page = 3600, 8 * DAY, 50_000
    with figures.client() as client:
        assert client.limits(ZONE_ID) == Limits(HOUR, timedelta(days=8), 10_000)
