"""Steps of a worker that follow each other without anything new: one event, and when each of them ends as a formula.

Every answer in it gets a token a step and the first prompt a chunk of the same size, so what a step has to read grows
by the same amount each time, and so does the time that it takes (core/cost_model.py): the k-th ends after
`extra + k * first + growth * k * (k - 1) / 2`.
"""

import math
from dataclasses import dataclass

from diptych.sim.sequence import Prompt

MOST_STEPS = 1_000_000
"""Of a run; more than any answer has."""


@dataclass(slots=True, eq=False)
class Run:
    """At least one step. All steps but a single one have the same chunks, full ones of one prompt, or none."""

    begin_s: float
    extra_s: float
    """What the first step takes longer, whatever is in it."""
    first_s: float
    """Of the first step, without that."""
    growth_s: float
    """What each step takes longer than the one before."""
    num_steps: int
    chunks: list[tuple[Prompt, int]]
    """Of each step: tokens of which prompts."""
    num_answers: int
    latency_s: float = 0.0
    """From a step's end to what comes of its prompts: further pipeline stages."""
    num_counted: int = 0
    """Steps that have been counted already: they had ended when something else looked."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of all steps together."""
        return self.num_steps * sum(num_tokens for _, num_tokens in self.chunks)

    def end_s(self, num_steps: int | None = None) -> float:
        """Return when so many steps (None: all) have been done."""
        k = self.num_steps if num_steps is None else num_steps
        return self.begin_s + self.extra_s + k * self.first_s + self.growth_s * (k * (k - 1) / 2)

    def num_done(self, now_s: float) -> int:
        """Return how many steps have ended by `now_s`."""
        passed_s = now_s - self.begin_s - self.extra_s
        if passed_s < self.first_s:
            return 0
        half, linear = self.growth_s / 2, self.first_s - self.growth_s / 2
        if half > 0:
            guess = (math.sqrt(linear * linear + 4 * half * passed_s) - linear) / (2 * half)
        else:
            guess = passed_s / linear if linear > 0 else float(self.num_steps)
        k = min(int(guess), self.num_steps)
        # A root is not exact; the formula decides.
        while k < self.num_steps and self.end_s(k + 1) <= now_s:
            k += 1
        while k > 0 and self.end_s(k) > now_s:
            k -= 1
        return k

    def cut(self, now_s: float) -> bool:
        """End with the step that is under way; tell whether that is sooner than planned."""
        num_steps = self.num_done(now_s) + 1
        is_sooner = num_steps < self.num_steps
        self.num_steps = min(num_steps, self.num_steps)
        return is_sooner
