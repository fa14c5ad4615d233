"""Medians with intervals. A figure without an interval is an anecdote, above all on a shared machine."""

from collections.abc import Sequence

import msgspec
import numpy as np

NUM_RESAMPLES = 10_000
INTERVAL_PERCENT = 95.0


class Estimate(msgspec.Struct, frozen=True):
    """A median and the bootstrap interval that holds it with `INTERVAL_PERCENT` confidence."""

    median: float
    low: float
    high: float
    num_samples: int


def estimate_median(samples: Sequence[float], seed: int) -> Estimate:
    """Return the samples' median with its percentile-bootstrap interval; the same samples and seed give the same.

    Samples must be independent of each other: pairs or requests, not the tokens of one answer.
    """
    values = np.asarray(samples, np.float64)
    if len(values) == 0:
        raise ValueError("the median of no samples is unknown")
    drawn = np.random.default_rng(seed).choice(values, (NUM_RESAMPLES, len(values)))
    tail_percent = (100.0 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(np.median(drawn, axis=1), [tail_percent, 100.0 - tail_percent])
    return Estimate(float(np.median(values)), float(low), float(high), len(values))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the samples do not exceed (linear between neighbours)."""
    return float(np.percentile(np.asarray(samples, np.float64), percent))


def median(samples: Sequence[float]) -> float:
    """Return the middle sample."""
    return percentile(samples, 50.0)
