"""The answers that a simulated worker is writing, each one token further with every step: counted, not looped over.

Every member gets one token a step, so it is enough to count steps: how far a member is follows from the step at which
it joined. Who comes to an end, or fills a block, is known beforehand, and until the next such moment nothing changes
but the count.

Invariants: `num_context_tokens` is the sum over the members' computed tokens; no member is further than its end.
"""

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from diptych.sim.lanes import Lanes

if TYPE_CHECKING:
    from diptych.sim.sequence import SimulatedSequence


class AnswerBatch:
    """Sequences whose answers are being written, by the order in which their requests came."""

    def __init__(self, block_size: int, num_stages: int = 1) -> None:
        """`num_stages`: of the pipeline that the answers go around."""
        self._block_size = block_size
        self.lanes = Lanes(num_stages) if num_stages > 1 else None
        self.num_steps = 0
        """Since the beginning."""
        self.num_context_tokens = 0
        """Whose KV the next step reads."""
        self._num_prompt_tokens = 0
        self.members: dict[int, SimulatedSequence] = {}
        """By epoch."""
        self._changes: list[tuple[int, int, int, SimulatedSequence]] = []
        """A heap: after which step who ends or fills a block; (step, arrival, epoch, who). Some may have left."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def mean_written_tokens(self) -> float | None:
        """How long the answers are on average so far; None if there are none. What is written again counts anew."""
        num = len(self.members)
        return (self.num_context_tokens - self._num_prompt_tokens) / num + 1 if num else None

    def join(self, sequence: "SimulatedSequence") -> None:
        """Take in a sequence whose prompt has been read and whose answer has not ended."""
        sequence.batch, sequence.step_joined = self, self.num_steps
        self.members[sequence.epoch] = sequence
        self.num_context_tokens += sequence.num_computed
        self._num_prompt_tokens += sequence.num_prompt_tokens
        if self.lanes is not None:
            sequence.lane = self.lanes.join(sequence.num_computed)
        self._await_change(sequence, sequence.num_computed)

    def leave(self, sequence: "SimulatedSequence") -> None:
        """Let a sequence go, as far as it is."""
        num_computed, num_outputs = sequence.num_computed_tokens, sequence.num_output_tokens
        sequence.batch, sequence.num_computed, sequence.num_known_outputs = None, num_computed, num_outputs
        self.num_context_tokens -= num_computed
        self._num_prompt_tokens -= sequence.num_prompt_tokens
        if self.lanes is not None:
            self.lanes.leave(sequence.lane, num_computed)
        del self.members[sequence.epoch]

    def advance(self, num_steps: int) -> list["SimulatedSequence"]:
        """Count steps, no more than `steps_to_change`; return who has ended or filled a block, in order of arrival."""
        self.num_steps += num_steps
        self.num_context_tokens += num_steps * len(self.members)
        if self.lanes is not None:
            self.lanes.advance(num_steps)
        changed: list[SimulatedSequence] = []
        while self._changes and self._changes[0][0] <= self.num_steps:
            _, _, epoch, sequence = heappop(self._changes)
            if self.members.get(epoch) is sequence:
                changed.append(sequence)
                self._await_change(sequence, sequence.num_computed_tokens)
        return changed

    def _await_change(self, sequence: "SimulatedSequence", num_computed: int) -> None:
        next_full = (num_computed // self._block_size + 1) * self._block_size
        num_left = min(sequence.num_last_computed, next_full) - num_computed
        if num_left > 0:
            heappush(self._changes, (self.num_steps + num_left, sequence.arrival, sequence.epoch, sequence))

    def steps_to_change(self) -> int:
        """Return after how many steps somebody ends or fills a block; there is a member."""
        while True:
            step, _, epoch, sequence = self._changes[0]
            if self.members.get(epoch) is sequence:
                return step - self.num_steps
            heappop(self._changes)
