"""The protocol between a worker and what computes: rows in, logits out, KV in blocks that the worker names.

A step is one forward pass over a batch of rows. The engine owns no block and keeps no sequence: a row brings its
tokens, how many came before them, and the block table that holds (and receives) their KV. So any engine bound to the
same segment can go on where another stopped, and that is the whole hand-over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diptych.core.ids import BlockId
from diptych.kv.layout import KVLayout

Logits = npt.NDArray[np.float32]
"""[wanted logits of all rows, in order; vocab_size]; the memory is the engine's and holds until the next step."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in a step."""

    token_ids: Sequence[int]
    """The tokens to compute, at least one; their KV is written."""
    num_past_tokens: int
    """Tokens of the sequence whose KV is in the blocks already."""
    block_table: Sequence[BlockId]
    """Blocks of the sequence from its first token on; may be longer than needed."""
    num_logits: int
    """Of how many of its last tokens logits are wanted: 0 while a prompt is being read, 1 to go on from there, all for
    the log-probabilities of a prompt."""


class StepEngine(Protocol):
    """Computes steps over block tables of the caller's. Not thread-safe; a running step cannot be cancelled."""

    name: str
    """For people, such as `openvino f32 KV`."""
    layout: KVLayout
    """Shape and bytes of a block; the same for every engine that shares a segment."""
    vocab_size: int
    eos_token_ids: frozenset[int]

    def bind(self, blocks: memoryview, num_blocks: int) -> None:
        """Use `blocks` (num_blocks * layout.block_bytes, writable, shared) as the KV cache.

        The caller keeps the memory mapped for as long as the engine lives.
        """
        ...

    def warm_up(self, plan: "WarmUp", block_table: Sequence[BlockId]) -> float:
        """Run the shapes that will come, so that the first request does not pay for them.

        Writes into the blocks of `block_table` alone. Returns the measured prefill speed, tokens a second.
        """
        ...

    def step(self, rows: Sequence[Row]) -> Logits:
        """Compute all rows, write their KV, return the logits that they want, in their order.

        Block tables must have been checked (kv/block_table.py).

        Raises: EngineError; the KV that the step was to write is then undefined, all other KV is intact.
        """
        ...


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Which shapes to run before a worker says that it is ready."""

    prefill_tokens: int
    """Size of one prefill chunk; 0: this worker reads no prompts."""
    batch_sizes: tuple[int, ...]
    """Decode batches; empty: this worker does not decode."""
    is_mixed: bool
    """Whether prefill chunks and decode rows meet in one step."""
