"""Routes by which an operator takes workers, and machines, out of service and back."""

import msgspec
from fastapi import FastAPI
from pydantic import Field
from starlette.responses import Response

from diptych.core.ids import NodeId, WorkerId
from diptych.core.messages import PeerAddress
from diptych.core.service import ClusterService
from diptych.frontend.openai.fields import Body
from diptych.frontend.openai.wire import encode
from diptych.frontend.openapi import answers

MOST_DRAIN_S = 3600.0
MOST_PROFILE_S = 600.0


class DrainOrder(Body):
    """How a worker is to be taken out of service."""

    timeout_s: float = Field(30.0, ge=0, le=MOST_DRAIN_S, description="What still runs then goes on elsewhere.")
    will_return: bool = Field(False, description="Whether a new worker takes its place.")


class ProfileOrder(Body):
    """For how long to look at a worker."""

    seconds: float = Field(10.0, gt=0, le=MOST_PROFILE_S, description="The answer comes when they are over.")


class WorkerProfile(msgspec.Struct, frozen=True):
    """What a worker was seen doing."""

    worker: str
    interval_s: float
    stacks: dict[str, int]


class DrainBegun(msgspec.Struct, frozen=True):
    """Which life of the worker will end."""

    worker: PeerAddress


def add_worker_routes(app: FastAPI, service: ClusterService) -> None:
    """Add /diptych/workers/{worker_id}/drain, /start and /profile, and /diptych/nodes/{node}/drain."""

    @app.post("/diptych/workers/{worker_id}/drain", responses=answers(DrainBegun, has_body=True, not_found=True))
    async def drain(worker_id: str, body: DrainOrder) -> Response:
        """Give a worker nothing new; end it when it has nothing left to do, or in time. Answers at once."""
        address = service.drain_worker(WorkerId(worker_id), body.timeout_s, will_return=body.will_return)
        return Response(encode(DrainBegun(address)), media_type="application/json")

    @app.post("/diptych/workers/{worker_id}/start", responses=answers(None, has_body=True, not_found=True))
    async def start(worker_id: str) -> Response:
        """Start a worker that is down. Answers at once."""
        service.revive_worker(WorkerId(worker_id))
        return Response(b"{}", media_type="application/json")

    @app.post("/diptych/workers/{worker_id}/profile", responses=answers(WorkerProfile, has_body=True, not_found=True))
    async def profile(worker_id: str, body: ProfileOrder) -> Response:
        """Look for a while at what a worker spends its time on: how often it was seen in which stack of calls."""
        seen = await service.sample_worker(WorkerId(worker_id), body.seconds)
        return Response(encode(WorkerProfile(worker_id, seen.interval_s, seen.stacks)), media_type="application/json")

    @app.post("/diptych/nodes/{node}/drain", responses=answers(None, has_body=True, not_found=True))
    async def drain_node(node: str) -> Response:
        """Have a machine that has joined leave, in order. Answers at once."""
        service.drain_node(NodeId(node))
        return Response(b"{}", media_type="application/json")
