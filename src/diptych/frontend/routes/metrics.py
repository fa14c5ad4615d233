"""What Prometheus scrapes: one route for the whole server. Workers are not asked: their heartbeats have told."""

from fastapi import FastAPI
from starlette.responses import Response

from diptych.core.errors import NotFoundError
from diptych.core.service import RequestService
from diptych.frontend.openapi import plain_text
from diptych.telemetry.metrics import CONTENT_TYPE, Metrics


def add_metrics_route(app: FastAPI, service: RequestService, metrics: Metrics | None) -> None:
    """Add /metrics; without `metrics` it says that there are none."""

    @app.get("/metrics", responses=plain_text())
    async def read_metrics() -> Response:
        """Tell all metrics in Prometheus' text format."""
        if metrics is None:
            raise NotFoundError("this server counts nothing: it was started with --no-metrics")
        return Response(await metrics.text(service.status()), media_type=CONTENT_TYPE)
