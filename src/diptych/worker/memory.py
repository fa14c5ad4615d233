"""A worker's hold on the node's segment: the header, the blocks, and the checks before anything is written."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.ids import BlockId, RequestId, WorkerId
from diptych.engine.base import Logits, Row, StepEngine
from diptych.kv.block_table import TableUse, check_block_tables
from diptych.kv.header import BlockCommit, SegmentHeader
from diptych.kv.layout import KVLayout


class StepPart(NamedTuple):
    """A row of a step and what entitles it to write."""

    row: Row
    request_id: RequestId
    epoch: int


class WorkerMemory:
    """The mapped segment, as one worker uses it. `blocks` is the part of the segment behind the header."""

    def __init__(self, header: SegmentHeader, blocks: memoryview, layout: KVLayout) -> None:
        self.header = header
        self.layout = layout
        self.num_blocks = header.num_blocks
        self._blocks = blocks
        self._extents_of: dict[WorkerId, set[int]] = {}

    def is_leased_to(self, owner: WorkerId, block_ids: Sequence[BlockId]) -> bool:
        """Tell whether all these blocks of the segment are in extents that `owner` leases."""
        extent_blocks = self.header.shape.extent_blocks
        extents = {block_id // extent_blocks for block_id in block_ids}
        if not extents <= self._extents_of.get(owner, set()):  # leases change hardly ever: look again only now
            self._extents_of[owner] = {block_id // extent_blocks for block_id in self.header.owned_blocks(owner)}
        return extents <= self._extents_of[owner]

    def check(self, parts: Sequence[StepPart]) -> None:
        """Check every block table against the header.

        Raises: BlockTableError.
        """
        uses = [
            TableUse(
                part.request_id, part.row.block_table, part.row.num_past_tokens, len(part.row.token_ids), part.epoch
            )
            for part in parts
        ]
        check_block_tables(uses, self.layout.block_size, self.num_blocks, self.header.block_epochs)

    def run_step(self, engine: StepEngine, parts: Sequence[StepPart]) -> Logits:
        """Check every block table, then compute.

        Raises: BlockTableError, and nothing was written; EngineError.
        """
        self.check(parts)
        return engine.step([part.row for part in parts])

    def try_adopt(self, record: BlockCommit, target: BlockId) -> bool:
        """Copy a dead worker's block, which a successor may reserve anew at any moment; tell whether it has not.

        The copy is whole if the record still holds afterwards: whoever reserves a block voids its record before he
        writes.
        """
        self.copy_block(record.block_id, target)
        return self.header.committed([record.block_id]) == [record]

    def copy_block(self, source: BlockId, target: BlockId) -> None:
        """Copy a block's KV into another; nobody may be writing either."""
        pairs = zip(
            self.layout.block_spans(source, self.num_blocks),
            self.layout.block_spans(target, self.num_blocks),
            strict=True,
        )
        for (begin, num_bytes), (target_begin, _) in pairs:
            self._blocks[target_begin : target_begin + num_bytes] = self._blocks[begin : begin + num_bytes]

    def parts(self, block_id: BlockId) -> list[memoryview]:
        """Return the runs of bytes that make up a block, writable: for a tier, which reads or fills them."""
        spans = self.layout.block_spans(block_id, self.num_blocks)
        return [self._blocks[begin : begin + num_bytes] for begin, num_bytes in spans]

    def checksum_written(self, block_table: Sequence[BlockId], num_cached_tokens: int, num_tokens: int) -> int:
        """Return a CRC-32 over the blocks that hold tokens `num_cached_tokens` to `num_tokens` of a sequence."""
        block_size = self.layout.block_size
        checksum = 0
        for block_id in block_table[num_cached_tokens // block_size : self.layout.num_blocks_for(num_tokens)]:
            for offset, num_bytes in self.layout.block_spans(block_id, self.num_blocks):
                checksum = zlib.crc32(self._blocks[offset : offset + num_bytes], checksum)
        return checksum
