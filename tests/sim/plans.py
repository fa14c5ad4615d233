"""Small clusters and loads that the simulator's tests share."""

from dataclasses import replace
from typing import Any

from diptych.core.cost_model import CostModel
from diptych.core.messages import Role
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.events import Event
from diptych.sim.outcome import RequestOutcome
from diptych.sim.plan import ClusterPlan, WorkerGroup, WorkerPlan
from diptych.sim.prompts import OfferedRequest

COSTS = CostModel(knots=((1, 0.02), (64, 0.03), (2048, 0.2)), row_s=1e-4, past_token_s=2e-7, pair_s=1e-9)
BLOCK_SIZE = 64
OWNER = WorkerPlan(costs=COSTS, num_blocks=2000, chunk_tokens=1024, decode_chunk_tokens=256)
READER = replace(OWNER, num_blocks=0)
APART = (WorkerGroup(Role.PREFILL, 2, READER), WorkerGroup(Role.DECODE, 2, OWNER))
MIXED = (WorkerGroup(Role.MIXED, 2, OWNER),)


def plan_of(groups: tuple[WorkerGroup, ...] = APART, routing: str = "least-loaded", **changes: Any) -> ClusterPlan:
    router = RouterSettings(
        routing=routing,  # type: ignore[arg-type]
        slo_ttft_s=2.0,
        slo_tpot_s=0.05,
        max_outstanding_requests=10_000,
    )
    return ClusterPlan(
        groups=groups, block_size=BLOCK_SIZE, max_model_len=50_000, max_tokens=1_000, router=router, **changes
    )


def fresh(number: int, arrival_s: float, num_prompt: int, num_output: int) -> OfferedRequest:
    """A request that shares nothing with others."""
    num_blocks = -(-num_prompt // BLOCK_SIZE)
    return OfferedRequest(arrival_s, num_prompt, num_output, tuple(range(number * 1_000, number * 1_000 + num_blocks)))


def steady_load(num_requests: int = 24, gap_s: float = 0.21, num_prompt: int = 900) -> list[OfferedRequest]:
    return [fresh(number, number * gap_s, num_prompt + 7 * number, 20 + 3 * number) for number in range(num_requests)]


def serve(plan: ClusterPlan, offered: list[OfferedRequest]) -> tuple[list[RequestOutcome], list[Event]]:
    """Serve; return outcomes, and all that happened."""
    events: list[Event] = []
    cluster = SimulatedCluster(plan)
    cluster.observe(events.append)
    return cluster.serve(offered), events
