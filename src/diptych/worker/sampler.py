"""From logits to the next token.

No generator state moves between processes: the only random number that a token needs is drawn from a counter-based
generator (Philox) keyed by the request's seed, at the token's position. So an answer is the same whoever samples it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diptych.core.errors import EngineError
from diptych.core.request import GREEDY_TEMPERATURE, SamplingParams
from diptych.engine.base import Logits

Floats = npt.NDArray[np.float32]
BINS_PER_NAT, NUM_BINS = 64, 2048
"""Bins by likelihood: 64 for each factor of e, down to e^-32 of the likeliest token's."""
TOKENS_PER_RUN = 256
SMALLEST_TEMPERATURE = 1e-20
"""Below it nothing changes any more (only equal logits have equal chances), and 32 bits would soon call it zero."""


def sample(logits: Logits, draws: Sequence[tuple[SamplingParams, int]]) -> list[int]:
    """Return one token id for each row of `logits` [num_rows, vocab_size].

    `draws`: for each row how to sample, and the token's index in its answer.

    Raises: EngineError if logits are not numbers (the weights or the KV are damaged).
    """
    best = logits.argmax(axis=1)
    highest = logits[np.arange(len(draws)), best]
    if not np.isfinite(highest).all():
        raise EngineError("the model returned logits that are no numbers")
    return [
        int(best[row])
        if params.temperature == GREEDY_TEMPERATURE
        else _draw(logits[row], float(highest[row]), params, index)
        for row, (params, index) in enumerate(draws)
    ]


def _draw(logits: Floats, highest: float, params: SamplingParams, index: int) -> int:
    gaps = (np.float32(highest) - logits) / np.float32(max(params.temperature, SMALLEST_TEMPERATURE))
    weights = np.exp(-gaps)
    _drop_unlikely(weights, gaps, params)
    return _choose(weights, uniform(params.seed, index))


def _drop_unlikely(weights: Floats, gaps: Floats, params: SamplingParams) -> None:
    """Set to zero what min-p, then top-k, then top-p leave out. Tokens as likely as the last one kept stay too.

    `weights` [vocab_size]: probabilities up to a factor, the likeliest token's being 1; `gaps`: minus their logarithms.
    """
    if params.min_p > 0:
        weights[weights < params.min_p] = 0
    if 0 < params.top_k < len(weights):
        weights[weights < _last_kept(weights, gaps, (weights > 0).astype(np.float32), params.top_k)] = 0
    if params.top_p < 1:
        wanted = params.top_p * float(weights.sum(dtype=np.float64))
        weights[weights < _last_kept(weights, gaps, weights, wanted)] = 0


def _last_kept(weights: Floats, gaps: Floats, measure: Floats, wanted: float) -> np.float32:
    """Return the weight of the token with which the likeliest tokens' `measure` first sums up to `wanted`.

    Sorting a vocabulary takes milliseconds. So tokens are dealt into bins by likelihood, and only the bin in which the
    sum is reached is sorted.
    """
    bins = np.minimum(gaps * BINS_PER_NAT, NUM_BINS - 1).astype(np.int16)  # wider integers convert ten times slower
    reached = np.cumsum(np.bincount(bins, measure, NUM_BINS))
    edge = min(int(np.searchsorted(reached, wanted)), NUM_BINS - 1)
    members = np.flatnonzero(bins == edge)
    members = members[np.argsort(gaps[members], kind="stable")]
    if not len(members):  # rounding: the sum of all falls short of `wanted`
        return np.float32(0)
    within = (reached[edge - 1] if edge else 0.0) + np.cumsum(measure[members], dtype=np.float64)
    last: np.float32 = weights[members[min(int(np.searchsorted(within, wanted)), len(members) - 1)]]
    return last


def _choose(weights: Floats, point: float) -> int:
    """Return the token at `point` in [0, 1) of the weights' sum, in order of token ids; never one of weight 0.

    In two levels, for speed: first the run of tokens, then the token.
    """
    begins = np.arange(0, len(weights), TOKENS_PER_RUN)
    runs = np.cumsum(np.add.reduceat(weights, begins, dtype=np.float64))
    wanted = point * runs[-1]
    # The product may round up to the whole sum: then it is the last run of any weight.
    run = int(min(np.searchsorted(runs, wanted, side="right"), np.searchsorted(runs, runs[-1])))
    tokens = np.cumsum(weights[begins[run] : begins[run] + TOKENS_PER_RUN], dtype=np.float64)
    within = wanted - (runs[run - 1] if run else 0.0)
    candidates = np.flatnonzero(weights[begins[run] : begins[run] + TOKENS_PER_RUN])
    place = int(np.searchsorted(tokens[candidates], within, side="right"))
    return int(begins[run] + candidates[min(place, len(candidates) - 1)])


def uniform(seed: int, index: int) -> float:
    """Return the number in [0, 1) that belongs to token `index` of an answer with this seed."""
    generator = np.random.Philox(key=seed % 2**64, counter=[index, 0, 0, 0])
    return float(generator.random_raw() >> 11) / 2**53
