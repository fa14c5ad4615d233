"""Routes about the server itself: health, readiness, workers, recent requests."""

import msgspec
from fastapi import FastAPI
from starlette.responses import Response

from diptych.core.events import RequestRecord
from diptych.core.service import ClusterStatus, RequestService
from diptych.frontend.client_connection import Intake
from diptych.frontend.openai.wire import encode
from diptych.frontend.openapi import answers


class Health(msgspec.Struct, frozen=True):
    """Answer of /health and /ready."""

    status: str


def add_cluster_routes(app: FastAPI, service: RequestService, intake: Intake) -> None:
    """Add /health, /ready, /diptych/status and /diptych/requests."""

    @app.get("/health", responses=answers(Health))
    async def health() -> Response:
        """Answer 200 as long as this process lives."""
        return _json(Health("ok"))

    @app.get("/ready", responses=answers(Health, or_else={503: Health}))
    async def ready() -> Response:
        """Answer 200 if requests can be served now, else 503."""
        status = service.status().health if intake.is_open else "draining"
        return _json(Health(status), 200 if status == "ready" else 503)

    @app.get("/diptych/status", responses=answers(ClusterStatus))
    async def cluster_status() -> Response:
        """Describe every worker."""
        return _json(service.status())

    @app.get("/diptych/requests", responses=answers(list[RequestRecord]))
    async def recent_requests() -> Response:
        """List the last requests to end, oldest first: sizes and times, no text."""
        return _json(service.recent_requests())


def _json(content: object, status_code: int = 200) -> Response:
    return Response(encode(content), status_code, media_type="application/json")
