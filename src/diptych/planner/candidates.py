"""Which workers are worth a simulation: those that fit, and that can meet the SLO with nothing else to do."""

from collections import Counter
from dataclasses import dataclass, field

from diptych.core.cost_model import CostModel
from diptych.core.errors import ConfigError
from diptych.core.messages import Role
from diptych.hardware.estimate import estimate_worker
from diptych.hardware.specs import Device
from diptych.hardware.worker_shape import WorkerShape
from diptych.planner.placements import Group
from diptych.planner.question import PlanQuestion
from diptych.policy.placement import (
    LengthFacts,
    Pool,
    answers_bound_per_s,
    possible_shapes,
    prompts_bound_per_s,
)

START = {Role.PREFILL: 0.45, Role.DECODE: 0.8}
"""Of its bound: about what a worker turns out to carry, where a search begins."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kind of worker, by what is known without a simulation."""

    group: Group
    """One of them."""
    bound_per_s: float
    """It will not carry much more."""
    start_per_s: float
    """Where to begin to look for what it carries."""


@dataclass(frozen=True, slots=True)
class Part:
    """A kind of worker, by what it was simulated to carry alone."""

    group: Group
    per_s: float

    @property
    def pool(self) -> Pool:
        """Itself as numbers."""
        return Pool(self.per_s, self.group.num_gpus, self.group.usd_per_hour)


@dataclass
class Found:
    """All candidates, and why there are no more."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of workers by reason."""


def find_candidates(question: PlanQuestion) -> Found:
    """Return all workers that may be worth it.

    Raises: ConfigError if there are none, with the reason that excluded most.
    """
    found, lengths = Found(), question.load.lengths()
    last_complaint = ""
    for device in question.devices:
        for shape in _shapes(question, device):
            for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
                try:
                    _consider(question, role, shape, lengths, found)
                except ConfigError as error:
                    found.left_out["does not fit into memory"] += 1
                    last_complaint = str(error)
    roles = {candidate.group.role for candidate in found.candidates}
    if Role.MIXED not in roles and not {Role.PREFILL, Role.DECODE} <= roles:
        raise ConfigError(_complaint(question, found, last_complaint))
    return found


def _shapes(question: PlanQuestion, device: Device) -> list[WorkerShape]:
    return list(possible_shapes(question.model, device, question.gpus_per_node, question.num_nodes, question.network))


def _consider(question: PlanQuestion, role: Role, shape: WorkerShape, lengths: LengthFacts, found: Found) -> None:
    estimate = estimate_worker(shape, role, question.costs)
    stage: CostModel = estimate.stage
    prompts = prompts_bound_per_s(stage, shape.pp, lengths, question.slo)
    answers = answers_bound_per_s(stage, shape.pp, estimate.kv_tokens, lengths, question.slo)
    if role is not Role.DECODE and not prompts:
        found.left_out["even an idle one is too late with the first token"] += 1
    elif role is not Role.PREFILL and not answers:
        found.left_out["even one answer alone is too slow, or does not fit"] += 1
    else:
        bound = {Role.PREFILL: prompts, Role.DECODE: answers, Role.MIXED: min(prompts, answers)}[role]
        both = 1 / (1 / prompts + 1 / answers) if prompts and answers else 0.0
        start = both / 2 if role is Role.MIXED else bound * START[role]
        found.candidates.append(Candidate(Group(role, shape), bound, start))


def _complaint(question: PlanQuestion, found: Found, last_complaint: str) -> str:
    reasons = "; ".join(f"{count} x {reason}" for reason, count in found.left_out.most_common())
    return (
        f"no worker serves {question.model.name} within {question.slo}: {reasons}. Allow more GPUs, faster ones, or a "
        f"more generous SLO{f' ({last_complaint})' if last_complaint else ''}"
    )
