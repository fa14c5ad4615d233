"""What a simulation tells: what became of each request, and what the workers were doing at some moments."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from diptych.core.ids import WorkerId
from diptych.core.slo import Slo
from diptych.sim.prompts import OfferedRequest


@dataclass(slots=True)
class RequestOutcome:
    """What became of a request. Times are from the simulation's first second on, as in `OfferedRequest`."""

    offered: OfferedRequest
    end: Literal["finished", "refused", "failed"]
    reason: str = ""
    """Why it was refused or failed."""
    first_token_s: float | None = None
    finished_s: float | None = None
    num_cached_tokens: int = 0
    """Found in the owner's cache, copied there, or loaded from the tier below."""
    has_copied: bool = False
    """Whether the router had the owner copy a prefix from another cache."""
    owner: str = ""
    reader: str = ""
    num_loaded_tokens: int = 0
    """Of the cached ones, from the tier below."""
    num_preemptions: int = 0
    num_migrations: int = 0
    """How often its owner died."""

    @property
    def ttft_s(self) -> float:
        """From arrival to first token, of one that has finished."""
        assert self.first_token_s is not None
        return self.first_token_s - self.offered.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first, of one that has finished; 0 of one token alone."""
        assert self.first_token_s is not None and self.finished_s is not None
        return (self.finished_s - self.first_token_s) / max(self.offered.num_output_tokens - 1, 1)

    def meets(self, slo: Slo) -> bool:
        """Tell whether it has kept to both limits."""
        return self.end == "finished" and self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


class LoadSample(NamedTuple):
    """A worker at a moment."""

    at_s: float
    worker_id: WorkerId
    num_answers: int
    num_context_tokens: int
    """Of those answers."""
    num_queued_prompts: int
    num_queued_tokens: int
    """Of prompts that are to be read there."""
    num_waiting: int = 0
    """Requests without blocks."""
