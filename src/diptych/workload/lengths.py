"""How long prompts and answers are."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal distribution, which lengths of prompts and answers resemble, cut at both ends."""

    median_tokens: int
    spread: float
    """Standard deviation of the logarithm; 0: always the median."""
    min_tokens: int
    max_tokens: int

    def draw(self, generator: np.random.Generator) -> int:
        """Return one length."""
        value = self.median_tokens * math.exp(self.spread * generator.standard_normal())
        return round(min(max(value, self.min_tokens), self.max_tokens))

    def scaled(self, factor: float) -> "Lengths":
        """Return the same distribution of lengths `factor` times as long, at least one token."""

        def scale(tokens: int) -> int:
            return max(round(tokens * factor), 1)

        return Lengths(scale(self.median_tokens), self.spread, scale(self.min_tokens), scale(self.max_tokens))
