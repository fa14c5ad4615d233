"""A node's KV blocks as those see them that move their bytes: where each block lies, here or in a peer's memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diptych.core.ids import BlockId
from diptych.kv.layout import KVLayout


class BlockPair(NamedTuple):
    """A block of this node and the one of a peer's that holds the same, before or after a transfer."""

    here: BlockId
    there: BlockId


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Where the blocks of a segment begin in the address space of the process that has mapped it, and how many."""

    address: int
    num_blocks: int

    def spans(self, block_id: BlockId, layout: KVLayout) -> list[tuple[int, int]]:
        """Return (address, bytes) of each run of bytes that makes up a block."""
        return [(self.address + offset, size) for offset, size in layout.block_spans(block_id, self.num_blocks)]


class BlockMemory:
    """The blocks of this node's segment, as this process has mapped them."""

    def __init__(self, blocks: memoryview, layout: KVLayout, num_blocks: int) -> None:
        """`blocks`: the part of the segment behind the header; stays mapped for as long as this is used."""
        self.layout = layout
        self.map = MemoryMap(np.frombuffer(blocks, np.uint8).ctypes.data, num_blocks)
        self._blocks = blocks

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole segment, whoever leases them."""
        return self.map.num_blocks

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
