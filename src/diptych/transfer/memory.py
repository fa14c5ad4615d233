"""A node's KV blocks as those see them that move their bytes: where each block lies."""

from collections.abc import Sequence
from typing import NamedTuple

from diptych.core.ids import BlockId
from diptych.kv.layout import KVLayout


class BlockPair(NamedTuple):
    """A block of this node and the one of a peer's that holds the same, before or after a transfer."""

    here: BlockId
    there: BlockId


class BlockMemory:
    """The blocks of this node's segment, as this process has mapped them."""

    def __init__(self, blocks: memoryview, layout: KVLayout, num_blocks: int, descriptor: int, offset: int) -> None:
        """`blocks`: the part of the segment behind the header; stays mapped for as long as this is used.

        `descriptor`: of the file that is mapped, for processes that map it too; `offset`: of the first block in it.
        `num_blocks`: of the whole segment, whoever leases them.
        """
        self.layout = layout
        self.num_blocks = num_blocks
        self.descriptor = descriptor
        self.offset = offset
        self._blocks = blocks

    @property
    def num_bytes(self) -> int:
        """Bytes from the first block to the end of the last."""
        return self.num_blocks * self.layout.block_bytes

    def parts(self, block_ids: Sequence[BlockId]) -> list[memoryview]:
        """Return the runs of bytes that make up these blocks, writable, in order."""
        return [
            self._blocks[begin : begin + num_bytes]
            for block_id in block_ids
            for begin, num_bytes in self.layout.block_spans(block_id, self.num_blocks)
        ]
