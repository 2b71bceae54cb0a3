"""`GET /metrics` for Prometheus: the vitals, the requests, the process.

Labels are bounded: status, state, priority, kind of failure, part, store, severity, hosts that are shut. Nothing is
told of single images or owners.
"""

from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cdn_pipeline.api.measured import Measured
from cdn_pipeline.observe.exposition import metrics_of
from cdn_pipeline.observe.vitals import Vitals

router = APIRouter(tags=["monitoring"])


class _Everything(Collector):
    """What the application counts itself, and the vitals."""

    def __init__(self, counted: CollectorRegistry, vitals: Vitals) -> None:
        self._counted = counted
        self._vitals = vitals

    def collect(self) -> Iterable[Metric]:
        yield from self._counted.collect()
        yield from metrics_of(self._vitals)
        yield from ProcessCollector(registry=None).collect()
        yield from PlatformCollector(registry=None).collect()


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": "cdn_pipeline_queue_depth 45.0"}}}},
    summary="Everything, for Prometheus",
)
async def get_prometheus_metrics(request: Request, vitals: Measured) -> Response:
    """Prometheus's text format, or OpenMetrics where it is asked for. The same measurement as for health."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Everything(request.app.state.registry, vitals))
    return Response(encode(registry), media_type=content_type)
