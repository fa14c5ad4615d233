"""A placement as the simulator takes it: who stands where, how much KV fits, and what it travels by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diptych.core.cost_model import CostModel
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.estimate import CostSource, estimate_worker
from diptych.hardware.specs import Link
from diptych.planner.placements import Group
from diptych.policy.placement import LARGEST_STEP_TOKENS, MOST_SEQUENCES
from diptych.router.settings import RouterSettings
from diptych.sim.plan import Batching, ClusterPlan, LinkPlan, WorkerGroup, WorkerPlan

MIXED_CHUNK_TOKENS = 512
"""Most prompt tokens of a mixed worker's step that also continues answers, as Sarathi-Serve and vLLM have it."""
AT_ONCE = CostModel.linear(step_base_s=1e-7, token_s=1e-10, pair_s=0.0)
"""Steps of the other phase where one alone is looked at."""
ENDLESS_TOKENS = 10_000_000
LONGEST_CONTEXT_TOKENS = 1_000_000
"""Whether a request fits is asked of the workers' blocks, not of the model."""
NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is the same for all placements of a question."""

    block_size: int
    slo: Slo
    costs: CostSource = "auto"
    gpus_per_node: int = 8
    batching: Batching = "chunked"
    """Of mixed workers."""


def worker_plan(group: Group, around: Surroundings) -> WorkerPlan:
    """Return what a worker of a group is like.

    Raises: ConfigError if the model does not fit.
    """
    estimate = estimate_worker(group.shape, group.role, around.costs)
    return WorkerPlan(
        costs=estimate.stage,
        num_blocks=0 if group.role is Role.PREFILL else estimate.kv_tokens // around.block_size,
        max_num_seqs=MOST_SEQUENCES,
        chunk_tokens=LARGEST_STEP_TOKENS,
        decode_chunk_tokens=MIXED_CHUNK_TOKENS,
        batching=around.batching if group.role is Role.MIXED else "chunked",
        pipeline_stages=group.shape.pp,
        price_per_hour=group.shape.usd_per_hour,
    )


def whole_plan(groups: Iterable[Group], kv_link: Link, around: Surroundings) -> ClusterPlan:
    """Return a cluster of these workers, KV going by `kv_link`.

    The network has one port a node, where workers stand side by side, node after node; devices' own links have one
    each.
    """
    groups = tuple(groups)
    model = groups[0].shape.model
    is_network = all(kv_link != group.shape.device.link for group in groups)
    machines = _nodes(groups, around.gpus_per_node) if is_network else _own_machines(groups)
    link = LinkPlan(
        bytes_per_s=kv_link.bytes_per_s, latency_s=kv_link.latency_s, kv_bytes_per_token=model.kv_bytes_a_token
    )
    workers = tuple(
        WorkerGroup(group.role, group.number, worker_plan(group, around), own)
        for group, own in zip(groups, machines, strict=True)
    )
    return _cluster(workers, link, around)


def phase_plan(group: Group, around: Surroundings) -> ClusterPlan:
    """Return one worker of a group alone.

    Where it has only one phase, a worker of the other one, that takes no time and has no end, stands beside it.
    """
    workers = [WorkerGroup(group.role, 1, worker_plan(group, around))]
    if group.role is Role.PREFILL:
        blocks = ENDLESS_TOKENS // around.block_size
        workers.append(WorkerGroup(Role.DECODE, 1, WorkerPlan(costs=AT_ONCE, num_blocks=blocks, max_num_seqs=NO_LIMIT)))
    elif group.role is Role.DECODE:
        workers.append(WorkerGroup(Role.PREFILL, 1, WorkerPlan(costs=AT_ONCE, num_blocks=0)))
    return _cluster(tuple(workers), None, around)


def _cluster(groups: tuple[WorkerGroup, ...], link: LinkPlan | None, around: Surroundings) -> ClusterPlan:
    return ClusterPlan(
        groups=groups,
        block_size=around.block_size,
        max_model_len=LONGEST_CONTEXT_TOKENS,
        router=RouterSettings(
            routing="overlap-load",
            slo_ttft_s=around.slo.ttft_s,
            slo_tpot_s=around.slo.tpot_s,
            max_outstanding_requests=NO_LIMIT,
        ),
        link=link,
    )


def _nodes(groups: Sequence[Group], gpus_per_node: int) -> list[tuple[str, ...]]:
    """Return the node of each worker, which is the one where it begins; kinds of devices share no node."""
    places: list[tuple[str, ...]] = []
    num_used: dict[str, int] = {}
    for group in groups:
        own = []
        for _ in range(group.number):
            used = num_used.get(group.shape.device.name, 0)
            own.append(f"{group.shape.device.name} node {used // gpus_per_node}")
            num_used[group.shape.device.name] = used + group.shape.num_devices
        places.append(tuple(own))
    return places


def _own_machines(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    return [tuple(f"{group.role} {number}" for number in range(group.number)) for group in groups]
