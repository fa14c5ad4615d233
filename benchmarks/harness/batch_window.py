"""From the token times of answers that ran side by side to the decode steps in which all of them took part."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from diptych.core.errors import BenchError

SETTLE_TOKENS = 3
"""Of each answer, not counted: joining changes the batch, and a changed batch costs more than a step."""


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """The stretch in which the batch was complete."""

    begin_s: float
    end_s: float
    gaps_s: list[float]
    """Between tokens of the same answer, over all answers."""
    num_tokens_before: list[int]
    """How many tokens each answer had brought when the window began."""

    @property
    def num_steps(self) -> int:
        """Decode steps in the window (the fewest gaps of any answer)."""
        return len(self.gaps_s) // len(self.num_tokens_before)


def find_full_batch(token_times_s: Sequence[Sequence[float]], min_steps: int) -> BatchWindow:
    """Return the window in which every answer was being written.

    Raises: BenchError if it is shorter than `min_steps` steps.
    """
    if any(len(times) <= SETTLE_TOKENS for times in token_times_s):
        raise BenchError("an answer brought hardly any text; choose another --seed, or ask for more tokens")
    begin_s = max(times[SETTLE_TOKENS] for times in token_times_s)
    end_s = min(times[-1] for times in token_times_s)
    gaps_s = [gap for times in token_times_s for gap in gaps_between(times, begin_s, end_s)]
    window = BatchWindow(begin_s, end_s, gaps_s, [sum(time <= begin_s for time in times) for times in token_times_s])
    if window.num_steps < min_steps:
        raise BenchError(
            f"only {window.num_steps} decode steps had all {len(token_times_s)} answers in them; ask for more tokens"
        )
    return window


def gaps_between(times_s: Sequence[float], begin_s: float, end_s: float) -> list[float]:
    """Return the gaps between neighbours that both lie in [begin_s, end_s]."""
    inside = [time for time in times_s if begin_s <= time <= end_s]
    return [later - earlier for earlier, later in pairwise(inside)]
