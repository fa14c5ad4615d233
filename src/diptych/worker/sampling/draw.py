"""The draw of one token from a row of logits.

No generator state moves between processes: the random numbers that a token needs are a function of the request's seed,
the choice and the token's position (Philox, a counter-based generator), one for each entry of the vocabulary. The token
is the one whose log-probability plus Gumbel noise is highest, which draws exactly from the distribution (Gumbel, 1954;
known as the Gumbel-max trick). So an answer is the same whoever samples it; and since a rounding error in the logits
matters only where two sums are as close as the error, also whichever way its logits were computed. (Inverting the
cumulated probabilities would need one number only, but an error anywhere in the vocabulary moves all borders behind
it.)
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diptych.core.request import SamplingParams
from diptych.worker.sampling.ranking import WIDENING_GAPS, Floats, kth_highest

RandomBits = npt.NDArray[np.uint32]

SMALLEST_TEMPERATURE = 1e-20
"""Below it nothing changes any more (only equal logits have equal chances), and 32 bits would soon call it zero."""
LIKELY_GAP = 8.0
"""Tokens less likely than e^-8 of the likeliest one win only with noise that few have: see `_contenders`."""


@dataclass(frozen=True, slots=True)
class Position:
    """Which token this is: with the vocabulary's size, all that its random numbers depend on."""

    seed: int
    choice: int
    """Of the request's answers, from 0."""
    index: int
    """In its answer, from 0."""


def random_bits(position: Position, vocab_size: int) -> RandomBits:
    """Return the random numbers [vocab_size], each of 32 bits, that belong to a token."""
    key = (position.choice << 64) | position.seed % 2**64
    # The generator counts in the lowest word: those of two positions never overlap.
    generator = np.random.Philox(key=key, counter=[0, position.index, 0, 0])
    return generator.random_raw(-(-vocab_size // 2)).view(np.uint32)[:vocab_size]


def gumbel(bits: RandomBits) -> npt.NDArray[np.float64]:
    """Turn random numbers into Gumbel noise, from -3.1 to 22.9."""
    return -np.log(-np.log((bits + 0.5) / 2**32))


def draw_token(logits: Floats, best: int, params: SamplingParams, position: Position) -> int:
    """Return a token drawn from `logits` [vocab_size], of which `best` is the likeliest. Not for temperature 0."""
    bits = random_bits(position, len(logits))
    temperature = max(params.temperature, SMALLEST_TEMPERATURE)
    lowest = _lowest_kept(logits, float(logits[best]), temperature, params)
    contenders = _contenders(logits, best, temperature, lowest, bits)
    sums = gumbel(bits[contenders]) - (float(logits[best]) - logits[contenders].astype(np.float64)) / temperature
    return int(contenders[sums.argmax()])


def _contenders(logits: Floats, best: int, temperature: float, lowest: float, bits: RandomBits) -> npt.NDArray[np.intp]:
    """Return the tokens that may win: the likely ones, and unlikely ones whose noise beats the best token's by enough.

    No token is left out that could win, so the choice is that over the whole vocabulary, at a tenth of its cost.
    """
    likely = max(float(logits[best]) - LIKELY_GAP * temperature, lowest)
    # An unlikely token has a gap above LIKELY_GAP to make up for: its noise must be higher than the best's by as much.
    needed = float(gumbel(bits[best])) + LIKELY_GAP
    needed_bits = math.floor(math.exp(-math.exp(-needed)) * 2**32) - 1
    may_win = bits >= np.uint32(max(needed_bits, 0))
    if lowest > -math.inf:
        may_win &= logits >= np.float32(lowest)
    return np.flatnonzero(may_win | (logits >= np.float32(likely)))


def _lowest_kept(logits: Floats, highest: float, temperature: float, params: SamplingParams) -> float:
    """Return the logit below which min-p, then top-k, then top-p drop tokens; equally likely ones stay together."""
    lowest = -math.inf
    if params.min_p > 0:
        lowest = highest + temperature * math.log(params.min_p)
    if 0 < params.top_k < len(logits):
        lowest = max(lowest, kth_highest(logits, params.top_k))
    if params.top_p < 1:
        lowest = max(lowest, _nucleus_border(logits, highest, temperature, lowest, params.top_p))
    return lowest


def _nucleus_border(logits: Floats, highest: float, temperature: float, lowest: float, top_p: float) -> float:
    """Return the logit of the token with which the likeliest tokens' probabilities first sum up to `top_p`."""
    kept = logits if lowest == -math.inf else logits[logits >= np.float32(lowest)]
    total = _weights(kept, highest, temperature).sum(dtype=np.float64)
    for gap in WIDENING_GAPS:
        likely = np.sort(kept[kept >= np.float32(highest - gap * temperature)])[::-1]
        reached = np.cumsum(_weights(likely, highest, temperature), dtype=np.float64)
        if reached[-1] >= top_p * total:
            return float(likely[np.searchsorted(reached, top_p * total)])
    return lowest  # rounding: the sum of all falls short of its share


def _weights(logits: Floats, highest: float, temperature: float) -> Floats:
    """Return probabilities up to a factor; the likeliest token has 1."""
    with np.errstate(over="ignore"):  # what is infinitely less likely has 0, as it should
        weights: Floats = np.exp((logits - np.float32(highest)) / np.float32(temperature))
    return weights
