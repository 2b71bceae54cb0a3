"""The dashboard can be read: every panel says what it shows, in which unit, and where to go on."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest

from cdn_pipeline.observe import thresholds
from cdn_pipeline.observe.cost import PRICES
from cdn_pipeline_tests.deploy.files import DASHBOARD_FILE, anchors, dashboard, numbers, panels

pytestmark = pytest.mark.skipif(not DASHBOARD_FILE.exists(), reason="installed without the checkout")

COLUMNS = 24

# The lines and colours of panels whose numbers are judged elsewhere.
LINES: Mapping[str, Sequence[float]] = {
    "Urgent jobs": [thresholds.QUEUE_DEPTH_WARNING, thresholds.QUEUE_DEPTH_ERROR],
    "Oldest due job": [
        thresholds.OLDEST_DUE_WARNING.total_seconds(),
        thresholds.OLDEST_DUE_ERROR.total_seconds(),
    ],
    "Success rate": [thresholds.SUCCESS_RATE_ERROR, thresholds.SUCCESS_RATE_WARNING],
    "Processing of the last counted hour": [thresholds.PROCESSING_TIME_WARNING_MS / 1000],
    "Breakers": [thresholds.BREAKER_OPEN_WARNING.total_seconds()],
    "Nobody works": [thresholds.NO_WORKERS_ERROR.total_seconds()],
    "Silence of Dagster's daemon": [thresholds.HEARTBEAT_STALE.total_seconds()],
    "Time to the first byte": [thresholds.FIRST_BYTE_MS / 1000],
    "Growth in a week": [thresholds.STORAGE_GROWTH_WARNING],
    "Disk used": [thresholds.DISK_USED_WARNING, thresholds.DISK_USED_ERROR],
}


def test_every_panel_has_an_id_of_its_own() -> None:
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))


def test_no_two_panels_lie_on_each_other_and_none_is_outside() -> None:
    places = {panel["id"]: cells(panel["gridPos"]) for panel in dashboard()["panels"]}
    overlapping = [(one, other) for one, other in combinations(places, 2) if places[one] & places[other]]
    assert overlapping == []
    assert {x for place in places.values() for x, _ in place} == set(range(COLUMNS))


def cells(place: Mapping[str, int]) -> set[tuple[int, int]]:
    return {
        (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
    }


def test_every_panel_has_words_a_unit_and_the_chosen_datasource() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["targets"], panel["title"]
    variables = {variable["name"]: variable["type"] for variable in dashboard()["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "runbook": "textbox"}


def test_every_query_is_of_the_chosen_job() -> None:
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            assert expression.count('job="$job"') == expression.count("{"), expression


def test_links_lead_to_sections_of_the_runbook() -> None:
    linked = {link["url"].removeprefix("${runbook}#") for panel in panels() for link in panel.get("links", [])}
    assert linked
    assert linked - anchors("runbook.md") == set()


def test_lines_are_drawn_where_the_thresholds_are() -> None:
    drawn = {panel["title"]: panel["fieldConfig"]["defaults"].get("thresholds", {"steps": []}) for panel in panels()}
    values = {title: [step["value"] for step in drawn[title]["steps"] if step["value"] is not None] for title in drawn}
    assert {title: values[title] for title in LINES} == LINES


def test_a_month_is_reckoned_at_the_known_prices() -> None:
    (panel,) = [panel for panel in panels() if panel["title"] == "A month, in dollars"]
    assert [numbers(target["expr"]) for target in panel["targets"]] == [
        [1e9, PRICES.gigabyte_month],
        [PRICES.class_a],
        [PRICES.class_b],
    ]
