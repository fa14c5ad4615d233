"""Which steps are measured: some to fit the cost model to, others to hold it against."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from diptych.calibrate.bare_engine import RowShape, StepShape

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""New tokens in a step at which the curve of a cost model may bend."""
CHUNKS = (8, 16, 32, 64, 128, 256, 512)
PASTS = (0, 384, 1_536)
BATCHES = (1, 2, 4, 8, 16, 32, 48)
CONTEXTS = (48, 384, 1_536)
MIXED = ((4, 300, 32, 256), (8, 300, 64, 0), (8, 300, 128, 1_024), (16, 300, 64, 256), (24, 300, 256, 512))
"""(answers, context of each, tokens of a prompt's chunk, tokens before it)."""


def batch(num_answers: int, context: int) -> list[RowShape]:
    """Return a step that continues answers, all of one context length."""
    return [RowShape(1, context)] * num_answers


CHANGES: list[tuple[StepShape, StepShape]] = [
    (batch(1, 256), batch(2, 256)),
    (batch(4, 256), batch(5, 256)),
    (batch(8, 256), batch(9, 256)),
    (batch(2, 256), [*batch(2, 256), RowShape(32, 64)]),
    (batch(6, 256), [*batch(6, 256), RowShape(64, 64)]),
    ([RowShape(64, 0)], [RowShape(96, 64)]),
]
"""Pairs between which service goes back and forth: an answer more, a chunk beside answers, another chunk."""


def fitted_steps() -> list[StepShape]:
    """Return the steps to fit a model to, from the smallest to the largest of each kind."""
    chunks: list[StepShape] = [[RowShape(tokens, past)] for tokens, past in product(CHUNKS, PASTS)]
    batches: list[StepShape] = [batch(size, context) for size, context in product(BATCHES, CONTEXTS)]
    mixed: list[StepShape] = [[*batch(size, context), RowShape(tokens, past)] for size, context, tokens, past in MIXED]
    return chunks + batches + mixed


def held_back_steps(num_steps: int, seed: int) -> Iterator[StepShape]:
    """Yield steps as they come in service, none of which a model has been fitted to.

    In turn: answers of unequal contexts, a prompt's chunk, answers with a chunk.
    """
    generator = np.random.default_rng(seed)

    def answers() -> list[RowShape]:
        size = int(np.exp(generator.uniform(np.log(1), np.log(40))))
        contexts = np.exp(generator.uniform(np.log(64), np.log(1_200), size)).astype(int).tolist()
        return [RowShape(1, context) for context in contexts]

    def chunk() -> RowShape:
        tokens = int(np.exp(generator.uniform(np.log(12), np.log(400))))
        return RowShape(tokens, int(generator.integers(0, 1_600)))

    for number in range(num_steps):
        yield ([*answers()], [chunk()], [*answers(), chunk()])[number % 3]


def num_blocks(step: StepShape, block_size: int) -> int:
    """Return how many blocks the rows of a step take if each has as many as the longest."""
    most_tokens = max(row.num_past_tokens + row.num_tokens for row in step)
    return len(step) * -(-most_tokens // block_size)
