"""When requests arrive, whatever becomes of those before them (open loop)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHUFFLE = 0x5EED
"""Told apart from the seeds of lengths and texts, which are drawn from the same number."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A renewal process: gaps between arrivals are independent and have the same distribution."""

    rate_per_s: float
    burstiness: float = 1.0
    """Shape of the gamma distribution of gaps: 1 is Poisson, below 1 arrivals come in bursts, above 1 more evenly.
    `inf`: at fixed distances. (The meaning that vLLM's `--burstiness` has.)"""

    def times_s(self, seed: int) -> Iterator[float]:
        """Yield arrival times without end, ascending.

        The same seed at another rate gives the same pattern, stretched: loads differ in nothing else.
        """
        generator = np.random.default_rng([seed, SHUFFLE])
        now_s = 0.0
        while True:
            now_s += self._unit_gap(generator) / self.rate_per_s
            yield now_s

    def _unit_gap(self, generator: np.random.Generator) -> float:
        if np.isinf(self.burstiness):
            return 1.0
        return float(generator.gamma(self.burstiness, 1.0 / self.burstiness))
