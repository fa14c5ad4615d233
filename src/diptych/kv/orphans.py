"""What a dead worker has left behind: its blocks, as the segment's header tells of them.

Two make use of it. Another worker that goes on with an answer copies the blocks that it needs; nobody keeps them for
it, so it looks at the record again after it has copied: a block that was reserved anew meanwhile has lost its record.
And the dead worker's own successor, which owns the same blocks, finds what its prefix cache was.

Invariants: a record is found only for the tokens that it is of, since full blocks are named by a hash over all tokens
up to their ends, and the others by a request that no other is named like (kv/commit_slots.py, `request_key`).
"""

from collections.abc import Iterable
from typing import Self

from diptych.core.ids import BlockHash, BlockId, WorkerId
from diptych.kv.header import BlockCommit, SegmentHeader


class Orphans:
    """The records of blocks whose worker is dead, by content and by whose they were."""

    def __init__(self, records: Iterable[BlockCommit]) -> None:
        self._by_hash: dict[BlockHash, BlockCommit] = {}
        self._by_place: dict[tuple[bytes, int], BlockCommit] = {}
        for record in records:
            if record.block_hash is not None:
                self._by_hash[record.block_hash] = record
            place = record.request_key, record.block_index
            known = self._by_place.get(place)
            # A sequence that was preempted has left older records of the same place, with fewer tokens.
            if known is None or known.num_tokens < record.num_tokens:
                self._by_place[place] = record

    @classmethod
    def of(cls, header: SegmentHeader, worker_id: WorkerId) -> Self:
        """Read the records of all blocks that `worker_id` leases. O(its blocks)."""
        return cls(record for record in header.committed(header.owned_blocks(worker_id)) if record is not None)

    def find(self, block_hash: BlockHash | None, request_key: bytes, block_index: int) -> BlockCommit | None:
        """Return the record of a block with this content, or else of this block of this sequence; None: there is none.

        `block_hash`: None for a block whose tokens do not fill it.
        """
        found = None if block_hash is None else self._by_hash.get(block_hash)
        return found or self._by_place.get((request_key, block_index))

    def cached(self) -> list[tuple[BlockHash, BlockId]]:
        """Return the full blocks, the first to be evicted first: the farther from a prompt's begin, the sooner."""
        records = sorted(self._by_hash.values(), key=lambda record: (-record.block_index, record.block_id))
        return [(record.block_hash, record.block_id) for record in records if record.block_hash is not None]
