"""Prompts of which only is known which blocks they share: named so that exactly those match, and of a known length.

A trace names blocks, not tokens; a block's name stands for it and all before it. So a prompt here has a length and
block numbers, and what live code wants to know of it (how long it is, how its blocks are called) it gets.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from diptych.core.ids import BlockHash
from diptych.kv.hashing import HASH_BYTES
from diptych.workload.trace import BLOCK_TOKENS, TraceRow

ODD = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""2**128 over the golden ratio: multiplied by it, numbers that follow each other are spread over all names."""
MASK = 2 ** (8 * HASH_BYTES) - 1


class FollowUp(NamedTuple):
    """A request that comes some time after the answer to the one before."""

    think_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    block_numbers: tuple[int, ...]

    def asked_at(self, arrival_s: float, follow_ups: tuple["FollowUp", ...]) -> "OfferedRequest":
        """Return it as a request that comes then."""
        return OfferedRequest(arrival_s, self.num_prompt_tokens, self.num_output_tokens, self.block_numbers, follow_ups)


class OfferedRequest(NamedTuple):
    """A request as a simulation is asked to serve it."""

    arrival_s: float
    """From the simulation's start."""
    num_prompt_tokens: int
    num_output_tokens: int
    block_numbers: tuple[int, ...]
    """One a block of the prompt, the last, partly filled one included; equal numbers mean equal prefixes so far."""
    follow_ups: tuple[FollowUp, ...] = ()
    """Asked one after the other, each when the answer before it has come."""


class NumberedPrompt(Sequence[int]):
    """A prompt as live code sees it: each token of a block is the block's number."""

    __slots__ = ("_block_size", "_hashes", "_length", "block_numbers")

    def __init__(self, offered: OfferedRequest, block_size: int) -> None:
        self.block_numbers = offered.block_numbers
        self._length = offered.num_prompt_tokens
        self._block_size = block_size
        self._hashes: list[BlockHash] | None = None

    @property
    def hashes(self) -> list[BlockHash]:
        """One name for each full block; router and worker both ask, and neither changes the list."""
        if self._hashes is None:
            self._hashes = _names(self.block_numbers[: self._length // self._block_size])
        return self._hashes

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self.block_numbers[index % self._length // self._block_size]


class NumberedBlocks:
    """Hashes prompts of block numbers (a `diptych.router.ports.PromptHasher`)."""

    def __init__(self, block_size: int = BLOCK_TOKENS) -> None:
        self.block_size = block_size

    def salted(self, cache_salt: str) -> "NumberedBlocks":
        """Return itself: a simulation has one tenant."""
        return self

    def hash_blocks(self, token_ids: Sequence[int]) -> list[BlockHash]:
        """Return one name for each full block."""
        if isinstance(token_ids, NumberedPrompt):
            return token_ids.hashes
        return _names(token_ids[:: self.block_size][: len(token_ids) // self.block_size])


def _names(block_numbers: Sequence[int]) -> list[BlockHash]:
    return [BlockHash(((number + 1) * ODD & MASK).to_bytes(HASH_BYTES, "big")) for number in block_numbers]


def offered_by_trace(
    rows: Iterable[TraceRow], speed: float = 1.0, block_size: int = BLOCK_TOKENS
) -> Iterator[OfferedRequest]:
    """Yield a trace's requests in order, `speed` times as fast as recorded, in blocks of `block_size`.

    The trace's blocks are cut into smaller ones; `block_size` divides their length. An answer of no tokens becomes one
    of one: that is the least that a request can be asked for.
    """
    num_parts, rest = divmod(BLOCK_TOKENS, block_size)
    if rest:
        raise ValueError(f"blocks of the trace have {BLOCK_TOKENS} tokens, which {block_size} does not divide")
    for row in rows:
        numbers = tuple(row.hash_ids)
        if num_parts > 1:
            num_blocks = -(-row.input_length // block_size)
            parts = (hash_id * num_parts + part for hash_id in row.hash_ids for part in range(num_parts))
            numbers = tuple(parts)[:num_blocks]
        yield OfferedRequest(row.timestamp / 1e3 / speed, row.input_length, max(row.output_length, 1), numbers)
