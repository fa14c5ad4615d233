"""What blocks held when they were written: the debug mode `--kv-checksums`, which trusts nobody with a block.

After a step its writer records a checksum of every block that it has written, with the epoch under which it did so.
Before a step, and again before its result is told, all blocks that its rows read are compared with their records. So
what a third party has written there is found before any token follows from it, and so is a block that was given away
while somebody still counted on it.
The records lie in the segment's header: they outlive their writers as the blocks do, and any worker can compare.

Invariants: a block is recorded before anyone is told what it holds; a reader knows the epoch under which each of its
blocks was written from whoever committed the block, not from the record, which would follow a block to its next user.
What is written astray into a block while its own writer's step is running is not found: nobody else knows what it is
to hold then.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from diptych.core.ids import BlockId
from diptych.kv.header import SegmentHeader
from diptych.kv.layout import KVLayout


class BlockRead(NamedTuple):
    """A block that a row of a step reads."""

    block_id: BlockId
    epoch: int
    """Under which it was written, as the row's sequence knows."""


class Damage(NamedTuple):
    """A block that does not hold what a reader counts on."""

    read: BlockRead
    reserved_epoch: int
    """What the header says now."""
    recorded_epoch: int
    """Of the block's checksum; 0: it has none."""

    def __str__(self) -> str:
        """Say what is wrong, in one line."""
        (block_id, epoch), reserved, recorded = self
        if reserved != epoch:
            return f"KV block {block_id} was written under epoch {epoch} and is reserved under epoch {reserved} now"
        if recorded != epoch:
            return f"KV block {block_id} was written under epoch {epoch}, its checksum under epoch {recorded}"
        return f"KV block {block_id} does not hold what was written there under epoch {epoch}"


class BlockChecksums:
    """Records checksums of blocks and compares them. CRC-32 finds any change within 32 neighbouring bits, and of others
    all but one in 4 billion.
    """

    def __init__(self, header: SegmentHeader, blocks: memoryview, layout: KVLayout) -> None:
        """`blocks`: the part of the segment behind the header."""
        self._header = header
        self._blocks = blocks
        self._layout = layout

    def record(self, block_ids: Sequence[BlockId], epoch: int) -> None:
        """Note what these blocks hold. Only who has just written them under `epoch` may say so."""
        self._header.record_checksums(block_ids, epoch, [self._checksum(block_id) for block_id in block_ids])

    def copy(self, source: BlockId, target: BlockId) -> None:
        """Let `target`, into which `source` has been copied, hold what was recorded of `source`: not what it holds now.

        `target` gets no record where `source` has none of its present reservation.
        """
        reserved_epoch, target_epoch = self._header.epochs_of([source, target]).tolist()
        ((recorded_epoch, checksum),) = self._header.checksums_of([source])
        epoch = target_epoch if recorded_epoch == reserved_epoch else 0
        self._header.record_checksums([target], epoch, [checksum])

    def find_damage(self, reads: Iterable[BlockRead]) -> list[Damage]:
        """Compare blocks with what is known of them; return those that differ. Each block is read once."""
        distinct = list(dict.fromkeys(reads))
        block_ids = [read.block_id for read in distinct]
        found = {block_id: self._checksum(block_id) for block_id in set(block_ids)}
        reserved = self._header.epochs_of(block_ids).tolist()
        recorded = self._header.checksums_of(block_ids)
        return [
            Damage(read, reserved_epoch, recorded_epoch)
            for read, reserved_epoch, (recorded_epoch, checksum) in zip(distinct, reserved, recorded, strict=True)
            if not (read.epoch == reserved_epoch == recorded_epoch and checksum == found[read.block_id])
        ]

    def _checksum(self, block_id: BlockId) -> int:
        checksum = 0
        for offset, num_bytes in self._layout.block_spans(block_id, self._header.num_blocks):
            checksum = zlib.crc32(self._blocks[offset : offset + num_bytes], checksum)
        return checksum
