"""The first page: how the whole is, what to do first, and the numbers behind it."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Response

from cdn_pipeline.api.measured import Measured
from cdn_pipeline.api.pages.charts import HEIGHT, WIDTH, charts
from cdn_pipeline.api.pages.runbook import runbook_url
from cdn_pipeline.api.pages.visits import PageRoute, Visit, Visited
from cdn_pipeline.api.serving import Serving
from cdn_pipeline.observe.alerts.book import active_alerts
from cdn_pipeline.observe.alerts.machine import Alert, State
from cdn_pipeline.observe.alerts.messages import headline
from cdn_pipeline.observe.alerts.rules import RULES
from cdn_pipeline.observe.health import Health, check_up
from cdn_pipeline.observe.history import History, history
from cdn_pipeline.observe.parts import Part, parts, whole
from cdn_pipeline.observe.readings import Reading
from cdn_pipeline.observe.shards import ShardState, shard_states
from cdn_pipeline.observe.stats import HOUR
from cdn_pipeline.observe.unattended import left_alone
from cdn_pipeline.observe.vitals import Vitals

router = APIRouter(route_class=PageRoute, include_in_schema=False)

_HOURS = 48
_PATIENCE_SECONDS = 2.0  # the page comes without what takes longer
_HEAT = (0.0, 0.01, 0.05, 0.20)  # shares of a shard's images that are not published, the upper ends of the levels

# Threads of their own: when the catalog hangs, all others wait for it, and that is when somebody opens the page.
_THREADS = CapacityLimiter(8)

_T = TypeVar("_T")


class Readings:
    """What the page reads besides the vitals, for all who have it open together."""

    def __init__(self, serving: Serving) -> None:
        read, collection = serving.read, serving.collection
        self._alerts = Reading(partial(read, active_alerts), fresh_for=5)
        self._history = Reading(partial(read, partial(history, hours=_HOURS)), fresh_for=30)
        self._shards = Reading(partial(read, partial(shard_states, collection=collection)), fresh_for=30)
        self._left_alone = Reading(partial(read, partial(left_alone, collection=collection)), fresh_for=5)

    def read(self) -> "Read":
        """Everything; what fails or takes long is None."""
        alerts, hours = self._alerts.ask(), self._history.ask()
        shards, alone = self._shards.ask(), self._left_alone.ask()
        return Read(_value(alerts), _value(hours), _value(shards), _value(alone))


@dataclass(frozen=True, slots=True)
class Read:
    """What was read; None: the catalog is away, or takes too long. `left_alone` is also None where somebody works."""

    alerts: Sequence[Alert] | None
    history: History | None
    shards: Sequence[ShardState] | None
    left_alone: str | None


def _value(future: Future[_T]) -> _T | None:
    try:
        return future.result(timeout=_PATIENCE_SECONDS)
    except Exception:  # of whatever kind: the vitals tell how the catalog is
        return None


def _readings(visit: Visit) -> Readings:
    state = visit.request.app.state
    if not hasattr(state, "page_readings"):
        state.page_readings = Readings(visit.serving)
    readings: Readings = state.page_readings
    return readings


@dataclass(frozen=True, slots=True)
class Ill:
    """A part that is not well, or an alert that fires; `runbook` is None where there is no runbook to show."""

    health: Health
    title: str
    words: str
    first: str
    runbook: str | None


@router.get("/")
async def get_overview(visit: Visited, vitals: Measured) -> Response:
    """The page. Whatever is away is told as such, and never keeps the rest from being shown."""
    read = await run_sync(_readings(visit).read, limiter=_THREADS)
    return await run_sync(partial(visit.page, "overview.html", **_values(vitals, read)), limiter=_THREADS)


def _values(vitals: Vitals, read: Read) -> dict[str, Any]:
    found = parts(vitals)
    return {
        "now": vitals.at,
        "age_seconds": _age_seconds(vitals),
        "vitals": vitals,
        "overview": vitals.overview,
        "health": whole(found),
        "sentence": _sentence(vitals, found),
        "ill": _ill(found),
        "parts": found,
        "firing": [_firing(alert) for alert in read.alerts or () if alert.state is State.FIRING],
        "alerts_known": read.alerts is not None,
        "left_alone": read.left_alone,
        "left_alone_runbook": runbook_url("what-runs-by-itself"),
        "history": read.history,
        "next_count": vitals.at.replace(minute=5) + HOUR,
        "charts": charts(read.history) if read.history else (),
        "chart_size": (WIDTH, HEIGHT),
        "shards": read.shards,
        "heat_of": _heat,
    }


def _age_seconds(vitals: Vitals) -> float:
    """How old the oldest of the numbers is."""
    return max((vitals.at - vitals.overview.now).total_seconds(), 0.0) if vitals.overview else 0.0


def _sentence(vitals: Vitals, found: Sequence[Part]) -> str:
    ill = [part for part in found if part.health is not Health.HEALTHY and not part.informs]
    if not ill and vitals.overview:
        return check_up(vitals.overview).words
    worst_first = sorted(ill, key=lambda part: part.health.rank)
    return "; ".join(part.words for part in worst_first) or "all that was measured is well"


def _ill(found: Sequence[Part]) -> Sequence[Ill]:
    ill = [part for part in found if part.health is not Health.HEALTHY]
    return [
        Ill(part.health, part.name, part.words, part.first, runbook_url(part.section))
        for part in sorted(ill, key=lambda part: (part.informs, part.health.rank))
    ]


_HEALTH_OF = {"critical": Health.UNHEALTHY, "warning": Health.DEGRADED, "info": Health.HEALTHY}


def _firing(alert: Alert) -> tuple[Alert, Ill]:
    rule = RULES.get(alert.rule)
    first = rule.first if rule else ""
    ill = Ill(_HEALTH_OF[alert.severity], headline(alert), alert.words, first, runbook_url(alert.rule))
    return alert, ill


def _heat(shard: ShardState) -> str:
    """How much of a shard is not published, in five levels; `none` for one without images."""
    if not shard.images:
        return "none"
    return str(sum(shard.unpublished_share > limit for limit in _HEAT))
