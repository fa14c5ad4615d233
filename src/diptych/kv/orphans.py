"""What a dead worker has left behind: its blocks, as the segment's header tells of them.

Two make use of it. Another worker that goes on with an answer copies the blocks that it needs; nobody keeps them for
it, so it looks at the record again after it has copied: a block that was reserved anew meanwhile has lost its record.
And the dead worker's own successor, which owns the same blocks, finds what its prefix cache was.

Invariants: a record is found only for the tokens that it is of, since full blocks are named by a hash over all tokens
up to their ends, and the others by a request that no other is named like (kv/commit_slots.py, `request_key`).
"""

from collections.abc import Iterable
from typing import Self

from diptych.core.ids import BlockHash, WorkerId
from diptych.kv.header import BlockCommit, SegmentHeader, parent_tag
from diptych.kv.prefix_cache import HeldBlock


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

    def cached(self) -> list[HeldBlock]:
        """Return the full blocks of which all blocks before them are here too.

        The first to be evicted comes first: the farther from a prompt's begin, the sooner.
        """
        kept: list[HeldBlock] = []
        at_place: dict[tuple[int, bytes], BlockHash] = {}
        for record in sorted(self._by_hash.values(), key=lambda record: (record.block_index, -record.block_id)):
            index, block_hash, tag = record.block_index, record.block_hash, record.parent_tag
            parent = None if index == 0 or tag is None else at_place.get((index - 1, tag))
            if block_hash is None or (index > 0 and parent is None):
                continue
            at_place[index, parent_tag(block_hash)] = block_hash
            kept.append(HeldBlock(block_hash, record.block_id, parent))
        return kept[::-1]
