"""What is simulated, as data: workers in groups, what is between and below them, what happens to them, the router."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from diptych.core.control import EvictionName
from diptych.core.cost_model import CostModel
from diptych.core.ids import WorkerId
from diptych.core.messages import Role
from diptych.router.settings import RouterSettings

Batching = Literal["chunked", "paced", "prefill-first"]
"""What a step takes. chunked: all answers and a chunk of the prompts, of fixed sizes. paced: the same, with as many
prompt tokens, and as many answers in all, as the SLO leaves room for (what live workers do unless told otherwise).
prefill-first: whole prompts while there are any, and answers wait (vLLM before it had chunks)."""


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """What a simulated worker is like."""

    costs: CostModel
    """Of a step; with pipeline stages, of the slowest one."""
    num_blocks: int
    """0: it writes no answers."""
    eviction: EvictionName = "reuse-aware"
    max_num_seqs: int = 256
    """Most sequences with blocks at a time."""
    chunk_tokens: int = 2048
    """Most prompt tokens of a step."""
    decode_chunk_tokens: int = 512
    """The same in a step that also continues answers."""
    copy_block_s: float = 0.0
    """How long it takes to fetch a block from another worker's cache."""
    batching: Batching = "chunked"
    pipeline_stages: int = 1
    """Through which each step goes one after the other, `costs` in each."""
    step_extra_s: float = 0.0
    """Of each step besides its costs, which predictions do not know: to choose tokens, to tell them."""
    price_per_hour: float = 0.0
    """Of one such worker, in dollars; 0: not known."""


class WorkerGroup(NamedTuple):
    """Workers that are alike."""

    role: Role
    num_workers: int
    plan: WorkerPlan
    machines: tuple[str, ...] = ()
    """Where they are, in turn. Empty: all on one machine, the same for all such groups."""

    def machine_of(self, index: int) -> str:
        """Return where the worker of this number is."""
        return self.machines[index % len(self.machines)] if self.machines else ""


class Place(NamedTuple):
    """A worker, what it is like, and the machine that it is on; each unit has machines of its own."""

    worker_id: WorkerId
    group: WorkerGroup
    machine: str


@dataclass(frozen=True, kw_only=True)
class LinkPlan:
    """How KV travels between machines: each has one port, equally fast out and in, which its transfers share evenly."""

    bytes_per_s: float
    latency_s: float = 1e-5
    """Of a prompt's transfer, besides its bytes."""
    kv_bytes_per_token: float
    does_overlap: bool = True
    """Whether a chunk's KV leaves while the next one is computed, or all of it when the prompt has been read."""


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """A slower store below the blocks of a machine's workers. What they read is stored, which takes no time."""

    num_blocks: int
    load_block_s: float
    """How long a block takes; loads wait for each other."""


class Failure(NamedTuple):
    """A worker dies and loses all it has."""

    at_s: float
    worker_id: WorkerId
    down_s: float | None
    """Until a new life of it comes; None: never."""


class RandomFailures(NamedTuple):
    """Workers die as if drawn from a hat."""

    mean_s: float
    """Between two deaths of one worker."""
    down_s: float


class RoleFlip(NamedTuple):
    """A worker is given another role; what it has begun, it ends."""

    at_s: float
    worker_id: WorkerId
    role: Role


class Interference(NamedTuple):
    """How many times as long steps take while any worker of the other phase on the same machine is in one."""

    decode_factor: float
    """Of steps that continue answers."""
    prefill_factor: float


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """What is simulated."""

    groups: tuple[WorkerGroup, ...]
    """Of each unit."""
    num_units: int = 1
    """Each has a router of its own; conversations come to them in turn."""
    block_size: int
    max_model_len: int
    max_tokens: int = 4096
    """Of every request: how long its answer will really be, the router does not know."""
    router: RouterSettings
    latency_s: float = 1e-4
    """Of each message."""
    accept_s: float = 0.0
    """From a request's arrival to the router: HTTP, text to tokens."""
    patience_s: float = 1e6
    """Of clients: they leave, and their answers are given up."""
    until_s: float = math.inf
    """No request comes later: an endless stream ends there, and so do conversations."""
    link: LinkPlan | None = None
    """Between machines; None: KV is wherever it is needed at once, as in one machine's memory."""
    tier: TierPlan | None = None
    failures: tuple[Failure | RandomFailures, ...] = ()
    flips: tuple[RoleFlip, ...] = ()
    interference: Interference | None = None
    seed: int = 0
    """Of the failures; routing has its own (`RouterSettings.routing_seed`)."""
    merges_steps: bool = True
    """Whether steps between which nothing changes are one event. The outcome is the same, it only takes longer."""

    @property
    def workers(self) -> dict[WorkerId, WorkerGroup]:
        """All workers, and what each is like."""
        return {worker_id: group for worker_id, group, _ in self.places}

    @property
    def places(self) -> list[Place]:
        """All workers, unit after unit."""
        return [place for number in range(self.num_units) for place in self.places_of(number)]

    def places_of(self, unit: int) -> list[Place]:
        """Return the workers of a unit, which are counted by role from where the unit before has ended."""
        places: list[Place] = []
        num_of_role = dict.fromkeys(Role, 0)
        for group in self.groups:
            num_of_role[group.role] += unit * group.num_workers
        for group in self.groups:
            for index in range(group.num_workers):
                worker_id = WorkerId(f"{group.role}-{num_of_role[group.role]}")
                num_of_role[group.role] += 1
                places.append(Place(worker_id, group, group.machine_of(index)))
        return places
