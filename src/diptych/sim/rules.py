"""What the live pace (worker/pace.py) is told of a simulated worker."""

from dataclasses import dataclass
from typing import Protocol

from diptych.core.messages import Role
from diptych.core.slo import Slo
from diptych.sim.plan import WorkerPlan


class HasRole(Protocol):
    """Whoever has a role, at this moment."""

    role: Role


@dataclass(frozen=True, slots=True)
class Rules:
    """A `diptych.worker.pace.PaceRules`."""

    worker: HasRole
    plan: WorkerPlan
    slo: Slo

    @property
    def is_adaptive(self) -> bool:
        """Whether sizes follow from the SLO."""
        return self.plan.batching == "paced"

    @property
    def role(self) -> Role:
        """The worker's role now."""
        return self.worker.role

    @property
    def chunk_tokens(self) -> int:
        """Most prompt tokens of a step."""
        return self.plan.chunk_tokens

    @property
    def decode_chunk_tokens(self) -> int:
        """The same beside answers, where sizes are fixed."""
        return self.plan.decode_chunk_tokens

    @property
    def slo_ttft_s(self) -> float:
        """Seconds to the first token."""
        return self.slo.ttft_s

    @property
    def slo_tpot_s(self) -> float:
        """Seconds a token after that."""
        return self.slo.tpot_s
