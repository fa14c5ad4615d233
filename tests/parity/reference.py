"""Greedy answers straight from an engine: what every path through the system must agree with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.control import KVDtype
from diptych.core.ids import BlockId
from diptych.engine.base import Row, StepEngine
from diptych.engine.openvino_engine import OpenVinoEngine
from diptych.policy.batching import plan_chunks
from diptych.transfer.segment import Segment

NUM_BLOCKS = 60


@dataclass(frozen=True)
class BareEngine:
    """An engine bound to `num_blocks` blocks of the memory behind `descriptor`."""

    engine: StepEngine
    num_blocks: int
    descriptor: int

    def block_tables(self, num_tokens: Sequence[int]) -> list[list[BlockId]]:
        """Deal out blocks for sequences of so many tokens, in an order that no allocator would choose."""
        # 7 and the number of blocks have no common divisor: every block comes once.
        shuffled = iter([BlockId(7 * index % self.num_blocks) for index in range(self.num_blocks)])
        return [[next(shuffled) for _ in range(self.engine.layout.num_blocks_for(size))] for size in num_tokens]

    def greedy_answers(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, chunk_tokens: Sequence[int]
    ) -> list[list[int]]:
        """Answer all prompts in shared steps, each prompt read in chunks of its own size."""
        sequences = [list(prompt) for prompt in prompts]
        ends = [len(prompt) + num_tokens for prompt in prompts]
        tables = self.block_tables(ends)
        computed = [0] * len(prompts)
        while any(len(tokens) < end for tokens, end in zip(sequences, ends, strict=True)):
            batch = [index for index, tokens in enumerate(sequences) if len(tokens) < ends[index]]
            rows = [self._row(sequences[i], computed[i], chunk_tokens[i], tables[i]) for i in batch]
            likeliest = iter(self.engine.step(rows).argmax(axis=1).tolist())
            for index, row in zip(batch, rows, strict=True):
                computed[index] += len(row.token_ids)
                if row.num_logits:
                    sequences[index].append(next(likeliest))
        return [tokens[len(prompt) :] for tokens, prompt in zip(sequences, prompts, strict=True)]

    def _row(self, tokens: list[int], num_computed: int, chunk_tokens: int, table: list[BlockId]) -> Row:
        num_new = plan_chunks([len(tokens) - num_computed], chunk_tokens)[0]
        num_logits = int(num_computed + num_new == len(tokens))
        return Row(tokens[num_computed : num_computed + num_new], num_computed, table, num_logits)

    def two_likeliest(self, tokens: Sequence[int]) -> tuple[list[int], float]:
        """Return the two likeliest tokens after `tokens`, and by how much their logits differ."""
        (table,) = self.block_tables([len(tokens)])
        logits = self.engine.step([Row(list(tokens), 0, table, 1)])[0]
        second, first = np.argsort(logits)[-2:].tolist()
        return [first, second], float(logits[first] - logits[second])


def bound_engine(model_dir: Path, kv_dtype: KVDtype) -> BareEngine:
    """Return the real engine on one thread, as a worker with one core has it, over a segment of its own."""
    engine = OpenVinoEngine(model_dir, frozenset(), 1, kv_dtype)
    segment, descriptor = Segment.create(NUM_BLOCKS * engine.layout.block_bytes)
    engine.bind(segment.view(0, segment.num_bytes), NUM_BLOCKS)
    return BareEngine(engine, NUM_BLOCKS, descriptor)
