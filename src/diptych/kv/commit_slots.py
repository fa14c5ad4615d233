"""What each block holds, written down so that it outlives the process that knew it.

After each step the writer of a block commits how many tokens the block now holds, whose, and, once full, under which
hash. When the writer dies, its successor reads these records and goes on from the blocks. Invariants: a block has two
slots and a commit overwrites only the one that does not hold, so a writer killed at any byte leaves the record before
or the record after; a record holds only as long as its epoch is the one that the block is reserved under, so a single
8-byte store (`SegmentHeader.reserve`) voids both slots.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diptych.core.errors import EngineError
from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.kv.hashing import HASH_BYTES
from diptych.kv.sealed import ENTRY_BYTES, ENTRY_WORDS, Entries, is_sealed, write_sealed

Indices = npt.NDArray[np.intp]
"""[n] block ids, checked to lie in the segment."""

REQUEST_KEY_BYTES = 16
PARENT_TAG_BYTES = 6
SLOTS_PER_BLOCK = 2
BLOCK_SLOTS_BYTES = SLOTS_PER_BLOCK * ENTRY_BYTES

_NO_HASH = bytes(HASH_BYTES)
_NO_TAG = bytes(PARENT_TAG_BYTES)
_SLOT = np.dtype(
    [
        ("sequence", np.uint16),  # grows with each commit to the block under one epoch, from 1
        ("parent_tag", f"V{PARENT_TAG_BYTES}"),
        ("block_hash", f"V{HASH_BYTES}"),
        ("request_key", f"V{REQUEST_KEY_BYTES}"),
        ("block_index", np.uint32),
        ("num_tokens", np.uint16),
        ("writer", np.uint16),
        ("epoch", np.uint64),
        ("checksum", np.uint64),
    ]
)
_SEQUENCE_WORD = 0
_SEQUENCE_MASK = np.uint64(2**16 - 1)
"""Of the sequence in its word, whose other bytes are the parent's tag (the machine is little-endian)."""
_EPOCH_WORD = 6


class BlockCommit(NamedTuple):
    """What a block holds."""

    block_id: BlockId
    block_hash: BlockHash | None
    """None while the block is not full."""
    request_key: bytes
    """Whose tokens these are: see `request_key`."""
    block_index: int
    """The block's place in the request's block table."""
    num_tokens: int
    """Tokens whose KV the block holds, from its start; below 2^16."""
    epoch: int
    """Of the reservation under which they were written."""
    writer: int = 0
    """Which worker wrote them last, where workers are numbered; below 2^16."""
    parent_tag: bytes | None = None
    """Of the block before it: see `parent_tag`. None: it has none, or is not full."""


def parent_tag(parent: BlockHash) -> bytes:
    """Return the beginning of a hash: enough to know it again among those of one worker at one place in a prompt."""
    return parent[:PARENT_TAG_BYTES]


def request_key(request_id: RequestId, arrived_s: float, attempt: int, choice: int = 0) -> bytes:
    """Return 16 bytes that name a choice of this attempt at this request.

    Ids may be used again when their requests have ended: the time of arrival tells the requests apart.
    """
    name = f"{attempt} {choice} {arrived_s!r} {request_id}"
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=REQUEST_KEY_BYTES).digest()


class CommitSlots:
    """A view of the records of all blocks. A block's slots have one writer at a time: the holder of its epoch."""

    def __init__(self, memory: memoryview, num_blocks: int) -> None:
        words: Entries = np.frombuffer(memory, np.uint64, count=num_blocks * SLOTS_PER_BLOCK * ENTRY_WORDS)
        self._slots = words.reshape(num_blocks, SLOTS_PER_BLOCK, ENTRY_WORDS)

    def commit(self, index: Indices, records: Sequence[BlockCommit], reserved_epochs: npt.NDArray[np.uint64]) -> None:
        """Write `records`, whose blocks are at `index`, are distinct and are reserved under `reserved_epochs`.

        Raises: EngineError if a record carries another epoch than its block; nothing was written.
        """
        new = _encode(records)
        is_void = new[:, _EPOCH_WORD] != reserved_epochs
        if is_void.any():
            at = int(is_void.argmax())
            raise EngineError(
                f"block {index[at]} is reserved under epoch {reserved_epochs[at]}, not {records[at].epoch}; "
                "it was taken from this writer, who must drop the request"
            )
        sequences = self._sequences(self._slots[index], reserved_epochs)
        next_sequences = sequences.max(axis=1) + np.uint64(1)
        if (next_sequences > _SEQUENCE_MASK).any():
            raise AssertionError("a block was committed more often under one epoch than it can have tokens")
        new[:, _SEQUENCE_WORD] |= next_sequences
        write_sealed(self._slots, (index, sequences.argmin(axis=1)), new)

    def read(self, index: Indices, reserved_epochs: npt.NDArray[np.uint64]) -> list[BlockCommit | None]:
        """Return the newest record of each block at `index` that holds; None where there is none."""
        slots = self._slots[index]
        sequences = self._sequences(slots, reserved_epochs)
        newest = slots[np.arange(len(index)), sequences.argmax(axis=1)]
        has_record: list[bool] = (sequences.max(axis=1) > 0).tolist()
        rows = zip(index.tolist(), newest.view(_SLOT)[:, 0].tolist(), has_record, strict=True)
        return [_decode(block_id, slot) if exists else None for block_id, slot, exists in rows]

    @staticmethod
    def _sequences(slots: Entries, reserved_epochs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return [n, 2] sequence numbers, 0 for a slot that does not hold (never or half written, or voided)."""
        holds = is_sealed(slots) & (slots[..., _EPOCH_WORD] == reserved_epochs[:, np.newaxis])
        return np.where(holds, slots[..., _SEQUENCE_WORD] & _SEQUENCE_MASK, np.uint64(0))


def _encode(records: Sequence[BlockCommit]) -> Entries:
    """Return [n, 8] words: slots without sequence numbers and checksums."""
    _, hashes, keys, block_indices, num_tokens, epochs, writers, tags = zip(*records, strict=True)
    slots = np.zeros(len(records), _SLOT)
    slots["parent_tag"] = _as_bytes([tag or _NO_TAG for tag in tags], PARENT_TAG_BYTES)
    slots["block_hash"] = _as_bytes([block_hash or _NO_HASH for block_hash in hashes], HASH_BYTES)
    slots["request_key"] = _as_bytes(keys, REQUEST_KEY_BYTES)
    slots["block_index"] = block_indices
    slots["num_tokens"] = num_tokens
    slots["epoch"] = epochs
    slots["writer"] = writers
    return slots.view(np.uint64).reshape(-1, ENTRY_WORDS)


def _as_bytes(values: Sequence[bytes], num_bytes: int) -> npt.NDArray[np.void]:
    if any(len(value) != num_bytes for value in values):
        raise AssertionError(f"block hashes and request keys have {HASH_BYTES} bytes, tags {PARENT_TAG_BYTES}")
    return np.frombuffer(b"".join(values), np.dtype((np.void, num_bytes)))


def _decode(block_id: BlockId, slot: tuple[int, bytes, BlockHash, bytes, int, int, int, int, int]) -> BlockCommit:
    _, tag, name, key, block_index, num_tokens, writer, epoch, _ = slot
    block_hash = None if name == _NO_HASH else name
    return BlockCommit(
        block_id, block_hash, key, block_index, num_tokens, epoch, writer, None if tag == _NO_TAG else tag
    )
