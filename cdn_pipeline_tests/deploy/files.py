"""The files under deploy/, parsed, and what the tests ask of PromQL."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dagster_shared.yaml_utils import load_yaml_from_path

from cdn_pipeline.settings import project_root

DEPLOY = project_root() / "deploy"
RULES_FILE = DEPLOY / "prometheus" / "rules.yml"
RULES_TESTS = (DEPLOY / "prometheus" / "rules_test.yml", DEPLOY / "prometheus" / "rules_week_test.yml")
DASHBOARD_FILE = DEPLOY / "grafana" / "dashboard.json"
DOCS = project_root() / "docs"

Promtool = Callable[[Sequence[str]], None]

# Metrics by name, each with the labels of its samples.
Served = Mapping[str, Sequence[Mapping[str, str]]]

_OF_PROMETHEUS = frozenset({"up"})
_TARGET_LABELS = frozenset({"job", "instance", "pod"})  # Prometheus adds them to what it scrapes
_WORDS = frozenset(
    {"absent", "and", "by", "histogram_quantile", "increase", "max", "min", "offset", "or", "rate", "sum", "without"}
)

_GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
_TIMES = re.compile(r"\[(?:\d+[smhdw]|\$__rate_interval)]|\boffset \w+")
_SELECTOR = re.compile(r"(?<![\w.])([a-zA-Z_:]\w*)\s*(?:{([^}]*)})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")


def load_yaml(path: Any) -> Any:
    """A YAML file's content."""
    return load_yaml_from_path(str(path))


def alert_rules() -> Sequence[Mapping[str, Any]]:
    """Every alerting rule of every group."""
    return [rule for group in load_yaml(RULES_FILE)["groups"] for rule in group["rules"]]


def dashboard() -> Mapping[str, Any]:
    """The dashboard as Grafana imports it."""
    document: Mapping[str, Any] = json.loads(DASHBOARD_FILE.read_text())
    return document


def panels() -> Sequence[Mapping[str, Any]]:
    """The dashboard's panels, without the headings of its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", (DOCS / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def numbers(query: str) -> list[float]:
    """The numbers that a query compares with or reckons with, in order; none of times and label values."""
    return [float(number) for number in _NUMBER.findall(_TIMES.sub("", re.sub(r"{[^}]*}", "", query)))]


@dataclass(frozen=True)
class Selector:
    """A metric in a query, and (label, operator, value) of its matchers."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(query: str) -> Sequence[Selector]:
    """Everything in a query that is no word of PromQL."""
    bare = _TIMES.sub("", _GROUPING.sub("", query))
    found = [(name, matchers) for name, matchers in _SELECTOR.findall(bare) if name not in _WORDS]
    return [Selector(name, tuple(_MATCHER.findall(matchers))) for name, matchers in found]


def unserved(query: str, served: Served) -> Iterator[str]:
    """What a query asks for and nobody serves: metrics, labels, labels' values."""
    labels = set(_TARGET_LABELS)
    for selector in selectors(query):
        samples = served.get(selector.metric, [])
        labels.update(*samples)
        if selector.metric in _OF_PROMETHEUS:
            continue
        if not samples:
            yield selector.metric
        for label, operator, value in selector.matchers:
            pattern = value if operator == "=~" else re.escape(value)
            values = {sample.get(label, "") for sample in samples}
            if label not in _TARGET_LABELS and not any(re.fullmatch(pattern, each) for each in values):
                yield f"{selector.metric}{{{label}{operator}{value}}}"
    grouped = {label.strip() for names in _GROUPING.findall(query) for label in names.split(",")}
    yield from sorted(grouped - labels)
