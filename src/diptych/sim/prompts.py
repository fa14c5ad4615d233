"""Prompts of which only is known which blocks they share: made of tokens, and named, so that exactly those match.

A trace names blocks, not tokens; a block's name stands for it and all before it. So each token of a block is the
block's number here, and a block's name is made of its first token alone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from diptych.core.ids import BlockHash
from diptych.kv.hashing import HASH_BYTES
from diptych.workload.trace import BLOCK_TOKENS, TraceRow


class OfferedRequest(NamedTuple):
    """A request as a simulation is asked to serve it."""

    arrival_s: float
    """From the simulation's start."""
    num_prompt_tokens: int
    num_output_tokens: int
    block_numbers: tuple[int, ...]
    """One a block of the prompt, the last, partly filled one included; equal numbers mean equal prefixes so far."""


class NumberedBlocks:
    """Hashes prompts of `prompt_tokens` (a `diptych.router.ports.PromptHasher`)."""

    def __init__(self, block_size: int = BLOCK_TOKENS) -> None:
        self.block_size = block_size
        self._names: dict[int, BlockHash] = {}

    def salted(self, cache_salt: str) -> "NumberedBlocks":
        """Return itself: a simulation has one tenant."""
        return self

    def hash_blocks(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """Return one name for each full block."""
        size = self.block_size
        return [self._name(token_ids[begin]) for begin in range(0, len(token_ids) - size + 1, size)]

    def _name(self, number: int) -> BlockHash:
        name = self._names.get(number)
        if name is None:
            digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=HASH_BYTES).digest()
            name = self._names[number] = BlockHash(digest)
        return name


def prompt_tokens(offered: OfferedRequest, block_size: int) -> list[int]:
    """Return a prompt's tokens."""
    token_ids: list[int] = []
    for number in offered.block_numbers:
        token_ids += [number] * block_size
    del token_ids[offered.num_prompt_tokens :]
    return token_ids


def offered_by_trace(rows: Iterable[TraceRow], speed: float = 1.0) -> Iterator[OfferedRequest]:
    """Yield a trace's requests in order, `speed` times as fast as recorded.

    An answer of no tokens becomes one of one: that is the least that a request can be asked for.
    """
    for row in rows:
        yield OfferedRequest(
            row.timestamp / 1e3 / speed, row.input_length, max(row.output_length, 1), tuple(row.hash_ids)
        )
