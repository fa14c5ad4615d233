"""The likeliest few of a row of logits, without sorting a vocabulary."""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

WIDENING_GAPS = (2.0, 4.0, 8.0, 16.0, math.inf)
"""How far below the highest logit to look: nearly always what is wanted is among the few likeliest."""


def kth_highest(logits: Floats, k: int) -> float:
    """Return the logit that `k` tokens (1 to all) are at or above."""
    likely = _at_least(logits, k)
    lowest = likely.min()
    above = likely[likely > lowest]
    if len(above) < k:  # not only a short cut: to partition thousands of equal values (banned tokens) takes ms
        return float(lowest)
    return float(np.partition(above, len(above) - k)[len(above) - k])


def likeliest_tokens(logits: Floats, k: int) -> list[int]:
    """Return the `k` likeliest tokens, the likeliest first; of equally likely ones those with lower ids."""
    if k == 0:
        return []
    k = min(k, len(logits))
    candidates = np.flatnonzero(logits >= np.float32(kth_highest(logits, k)))
    order = np.argsort(-logits[candidates], kind="stable")
    tokens: list[int] = candidates[order[:k]].tolist()
    return tokens


def _at_least(logits: Floats, k: int) -> Floats:
    """Return the highest logits: at least `k`, and all that are as high as the lowest of them."""
    highest = logits.max()
    for gap in WIDENING_GAPS:
        likely: Floats = logits[logits >= highest - np.float32(gap)]
        if len(likely) >= k:
            return likely
    raise AssertionError(f"a row of {len(logits)} logits has no {k} highest")
