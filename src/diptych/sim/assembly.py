"""From a cluster as it is written down (config.py) to what is simulated (plan.py): specs and profiles in numbers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.hardware.estimate import estimate_worker
from diptych.hardware.models import ModelShape, find_model
from diptych.hardware.profile import read_profile
from diptych.hardware.specs import GBIT_S, find_device, network
from diptych.hardware.worker_shape import WorkerShape
from diptych.router.settings import RouterSettings
from diptych.sim.config import PoolTable, SimulationConfig
from diptych.sim.plan import (
    ClusterPlan,
    Failure,
    Interference,
    LinkPlan,
    RandomFailures,
    RoleFlip,
    TierPlan,
    WorkerGroup,
    WorkerPlan,
)

SECONDS_PER_HOUR = 3600.0
LONGEST_CONTEXT_TOKENS = 1_000_000
"""Of a model of which nothing is known but a profile."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a pool's hardware comes to."""

    costs: CostModel
    kv_tokens: int
    usd_per_hour: float
    model: ModelShape | None


def cluster_plan(config: SimulationConfig, folder: Path, seed: int, until_s: float = math.inf) -> ClusterPlan:
    """Return what to simulate; paths in `config` are relative to `folder`.

    Raises: ConfigError naming the pool if its hardware is not known, its model does not fit, its profile is none.
    """
    workers = [_of_pool(number, pool, folder) for number, pool in enumerate(config.pool, 1)]
    models = [worker.model for worker in workers if worker.model is not None]
    groups = tuple(_group(pool, worker, config.block_tokens) for pool, worker in zip(config.pool, workers, strict=True))
    owned = [group.plan.num_blocks * config.block_tokens for group in groups if group.role is not Role.PREFILL]
    longest = min([model.max_model_len for model in models], default=LONGEST_CONTEXT_TOKENS)
    plan = ClusterPlan(
        groups=groups,
        num_units=config.units,
        block_size=config.block_tokens,
        max_model_len=config.max_model_len or min(longest, max(owned)),
        max_tokens=config.max_tokens,
        router=RouterSettings(
            max_outstanding_requests=config.router.max_queue,
            local_prefill_max_tokens=config.router.local_prefill_max_tokens,
            routing=config.router.routing,
            routing_temperature=config.router.routing_temperature,
            balancing_threshold=config.router.balancing_threshold,
            routing_seed=seed,
            slo_ttft_s=config.slo.ttft_s,
            slo_tpot_s=config.slo.tpot_s,
            admission=config.router.admission,
        ),
        latency_s=config.message_ms / 1e3,
        accept_s=config.accept_ms / 1e3,
        patience_s=ClusterPlan.patience_s if config.patience_s is None else config.patience_s,
        until_s=until_s,
        link=_link(config, models),
        tier=_tier(config),
        interference=None if config.interference is None else Interference(**config.interference.model_dump()),
        seed=seed,
    )
    events = list(_events(config, plan))
    return _with_events(plan, config, events)


def _of_pool(number: int, pool: PoolTable, folder: Path) -> _Worker:
    try:
        if pool.profile is not None:
            profile = read_profile(folder / pool.profile)
            return _Worker(profile.costs_for(pool.cores), pool.kv_tokens or 0, pool.usd_per_hour or 0.0, None)
        assert pool.hardware is not None and pool.model is not None
        model, device = find_model(pool.model), find_device(pool.hardware)
        stage_link = None if pool.stage_gbit_per_s is None else network(pool.stage_gbit_per_s)
        shape = WorkerShape(model, device, pool.tensor_parallel, pool.pipeline_parallel, stage_link)
        estimate = estimate_worker(shape, pool.role, pool.costs)
    except ConfigError as error:
        raise ConfigError(f"`pool[{number}]`: {error}") from None
    price = shape.usd_per_hour if pool.usd_per_hour is None else pool.usd_per_hour
    return _Worker(estimate.stage, pool.kv_tokens or estimate.kv_tokens, price, model)


def _group(pool: PoolTable, worker: _Worker, block_tokens: int) -> WorkerGroup:
    # A prefill worker owns blocks only if it is told to: then it helps out with answers.
    owns = pool.role is not Role.PREFILL or pool.kv_tokens is not None
    copy_block_s = 0.0
    if pool.copy_bytes_per_s is not None and worker.model is not None:
        copy_block_s = block_tokens * worker.model.kv_bytes_a_token / pool.copy_bytes_per_s
    costs = worker.costs
    plan = WorkerPlan(
        costs=costs if pool.batch_change_s is None else replace(costs, change_s=pool.batch_change_s),
        num_blocks=worker.kv_tokens // block_tokens if owns else 0,
        eviction=pool.eviction,
        max_num_seqs=pool.max_num_seqs,
        chunk_tokens=pool.chunk_tokens,
        decode_chunk_tokens=pool.decode_chunk_tokens,
        copy_block_s=copy_block_s,
        batching=pool.batching,
        pipeline_stages=pool.pipeline_parallel if pool.profile is None else 1,
        step_extra_s=pool.step_extra_s,
        price_per_hour=worker.usd_per_hour,
    )
    machines = tuple(f"machine-{pool.first_machine + number}" for number in range(pool.machines))
    return WorkerGroup(pool.role, pool.workers, plan, machines)


def _link(config: SimulationConfig, models: list[ModelShape]) -> LinkPlan | None:
    link = config.link
    if link is None:
        return None
    kv_bytes = link.kv_bytes_per_token or next((float(model.kv_bytes_a_token) for model in models), None)
    if kv_bytes is None:
        raise ConfigError("`link.kv_bytes_per_token` is missing: no pool says which model it is")
    return LinkPlan(
        bytes_per_s=link.gbit_per_s * GBIT_S,
        latency_s=link.latency_us / 1e6,
        kv_bytes_per_token=kv_bytes,
        does_overlap=link.overlap,
    )


def _tier(config: SimulationConfig) -> TierPlan | None:
    tier, size = config.tier, config.block_tokens
    return None if tier is None else TierPlan(num_blocks=tier.kv_tokens // size, load_block_s=size / tier.tokens_per_s)


def _events(config: SimulationConfig, plan: ClusterPlan) -> Iterator[Failure | RoleFlip]:
    known = plan.workers
    for number, event in enumerate(config.event, 1):
        worker_id = WorkerId(event.worker)
        if worker_id not in known:
            some = ", ".join(list(known)[:4])
            raise ConfigError(f"`event[{number}].worker`: there is no {event.worker}; workers are {some}, ...")
        if event.what == "dies":
            yield Failure(event.at_s, worker_id, event.down_s)
        else:
            yield RoleFlip(event.at_s, worker_id, Role(event.what))


def _with_events(plan: ClusterPlan, config: SimulationConfig, events: list[Failure | RoleFlip]) -> ClusterPlan:
    failures: list[Failure | RandomFailures] = [event for event in events if isinstance(event, Failure)]
    if config.failures is not None:
        mean_s = config.failures.mean_hours_between * SECONDS_PER_HOUR
        failures.append(RandomFailures(mean_s, config.failures.down_s))
    flips = tuple(event for event in events if isinstance(event, RoleFlip))
    return replace(plan, failures=tuple(failures), flips=flips)
