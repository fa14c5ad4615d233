"""What to start on this machine: how many prefill, decode or mixed workers, by the step times of its own profile.

Cores are shared out evenly, as `diptych serve` does, so fewer workers have more each. Every arrangement is simulated
adaptive and with its phases strictly apart, with the chunks, batches and blocks that `diptych serve` would give it.
"""

from collections.abc import Iterator
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass

from diptych.core.config import ServeConfig
from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.hardware.profile import Profile
from diptych.launch.segment_plan import SHARES
from diptych.planner.goodput import FINE, judge, search_goodput
from diptych.planner.load import Load
from diptych.planner.placements import Goodput
from diptych.planner.search import OnProgress
from diptych.router.settings import RouterSettings
from diptych.sim.cluster import SimulatedCluster
from diptych.sim.plan import ClusterPlan, Interference, WorkerGroup, WorkerPlan

MOST_WORKERS = 8
"""Of an arrangement: more would be many simulations, and memory for as many copies of the weights."""
BLOCK_SIZE = 32
"""Tokens of a block of the CPU engine."""
ACCEPT_S = 0.002
"""HTTP, template and tokens, as measured (benchmarks/results)."""


@dataclass(frozen=True, order=True)
class Arrangement:
    """Workers of one server."""

    prefill: int
    decode: int
    mixed: int
    is_adaptive: bool

    @property
    def roles(self) -> dict[Role, int]:
        """Number of workers by role, of those that there are."""
        numbers = {Role.PREFILL: self.prefill, Role.DECODE: self.decode, Role.MIXED: self.mixed}
        return {role: number for role, number in numbers.items() if number}

    @property
    def num_workers(self) -> int:
        """All of them."""
        return self.prefill + self.decode + self.mixed

    def __str__(self) -> str:
        """Write it as `1 prefill + 1 decode, adaptive`."""
        workers = " + ".join(f"{number} {role}" for role, number in self.roles.items())
        return f"{workers}, {'adaptive' if self.is_adaptive else 'strict'}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine and its model, as far as plans go."""

    profile: Profile
    num_cores: int
    config: ServeConfig
    """Memory, chunks and batches; its numbers of workers do not count."""
    kv_bytes_a_token: float

    def costs(self, arrangement: Arrangement) -> CostModel:
        """Return step times of each worker of an arrangement."""
        return self.profile.costs_for(self.num_cores // arrangement.num_workers)


@dataclass(frozen=True, slots=True)
class LocalVerdict:
    """An arrangement and what it is good for."""

    arrangement: Arrangement
    goodput: Goodput


def arrangements(num_cores: int) -> Iterator[Arrangement]:
    """Yield those in which every worker has a core of its own."""
    for is_adaptive in (True, False):
        for total in range(1, min(num_cores, MOST_WORKERS) + 1):
            yield Arrangement(0, 0, total, is_adaptive)
            for prefill in range(1, total):
                yield Arrangement(prefill, total - prefill, 0, is_adaptive)


def local_cluster(machine: Machine, arrangement: Arrangement, slo: Slo) -> ClusterPlan:
    """Return an arrangement as a simulation takes it.

    Raises: ConfigError if memory is too little for its workers.
    """
    config, is_adaptive = machine.config, arrangement.is_adaptive
    num_blocks = int(config.kv_bytes / (machine.kv_bytes_a_token * BLOCK_SIZE))
    helper, owner = SHARES if is_adaptive else (0, 1)
    num_shares = arrangement.prefill * helper + (arrangement.decode + arrangement.mixed) * owner
    if num_blocks < num_shares:
        raise ConfigError(f"--kv-bytes {config.kv_bytes / 1e6:g}MB is too little for {arrangement}")
    costs = machine.costs(arrangement)

    def group(role: Role, number: int) -> WorkerGroup:
        plan = WorkerPlan(
            costs=costs,
            num_blocks=num_blocks * (helper if role is Role.PREFILL else owner) // num_shares,
            eviction=config.eviction,
            max_num_seqs=config.max_num_seqs,
            chunk_tokens=config.chunk_tokens,
            decode_chunk_tokens=config.decode_chunk_tokens,
            batching="paced" if is_adaptive else "chunked",
        )
        return WorkerGroup(role, number, plan)

    felt = machine.profile.interference
    return ClusterPlan(
        groups=tuple(group(role, number) for role, number in arrangement.roles.items()),
        block_size=BLOCK_SIZE,
        max_model_len=num_blocks * owner // num_shares * BLOCK_SIZE,
        router=RouterSettings(
            routing="predicted" if is_adaptive else "overlap-load",
            local_prefill_max_tokens=config.local_prefill_max_tokens,
            slo_ttft_s=slo.ttft_s,
            slo_tpot_s=slo.tpot_s,
            max_outstanding_requests=1_000_000,
        ),
        accept_s=ACCEPT_S,
        interference=None if felt is None else Interference(felt.decode_factor, felt.prefill_factor),
    )


def arrangement_goodput(machine: Machine, arrangement: Arrangement, load: Load, slo: Slo) -> Goodput:
    """Return the goodput of an arrangement."""
    plan, costs, lengths = local_cluster(machine, arrangement, slo), machine.costs(arrangement), load.lengths()
    prefill_s = costs.prefill_s(round(lengths.mean_prompt_tokens), 0, machine.config.chunk_tokens)
    decode_s = lengths.mean_output_tokens * costs.answers_s(8, lengths.mean_context_tokens) / 8
    start_per_s = arrangement.num_workers / (prefill_s + decode_s)
    return search_goodput(
        lambda rate_per_s: judge(SimulatedCluster(plan).serve(load.offered(rate_per_s)), slo), start_per_s, FINE
    )


def search_here(
    machine: Machine, load: Load, slo: Slo, executor: Executor, on_progress: OnProgress
) -> list[LocalVerdict]:
    """Return all arrangements, the best first; of equals the one with fewer workers, which takes less memory."""
    pending = {
        executor.submit(arrangement_goodput, machine, arrangement, load, slo): arrangement
        for arrangement in arrangements(machine.num_cores)
    }
    verdicts: list[LocalVerdict] = []
    for future in as_completed(pending):
        verdicts.append(LocalVerdict(pending[future], future.result()))
        on_progress("arrangements", len(verdicts), len(pending))
    return sorted(verdicts, key=lambda one: (-one.goodput.per_s, one.arrangement.num_workers, one.arrangement))


def serve_toml(machine: Machine, verdict: LocalVerdict, slo: Slo) -> str:
    """Return an arrangement as `diptych serve --config` takes it."""
    arrangement = verdict.arrangement
    lines = [
        f"# Written by `diptych plan --here`: {arrangement}.",
        f"# Simulated goodput {verdict.goodput.per_s:.3f} requests/s within {slo}, on {machine.num_cores} cores.",
        f'model = "{machine.config.model}"',
        f"prefill = {arrangement.prefill}",
        f"decode = {arrangement.decode}",
        f"mixed = {arrangement.mixed}",
        f"adaptive = {str(arrangement.is_adaptive).lower()}",
        f"kv_bytes = {machine.config.kv_bytes}",
        f"slo_ttft_s = {slo.ttft_s:g}",
        f"slo_tpot_s = {slo.tpot_s:g}",
    ]
    return "\n".join(lines) + "\n"
