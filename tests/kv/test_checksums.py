"""Every byte of a block counts, no byte of another; and a record holds for one reservation."""

import pytest

from diptych.core.ids import BlockId
from diptych.kv.checksums import BlockChecksums, BlockRead, Damage
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.kv.layout import CacheTensor, KVLayout

NUM_BLOCKS = 6
LAYOUT = KVLayout.of([CacheTensor("keys", (4, 2), "f32"), CacheTensor("values", (4, 3), "f32")], 4)
"""Two regions: a block is two runs of bytes."""


class Blocks:
    def __init__(self) -> None:
        memory = memoryview(bytearray(header_bytes(NUM_BLOCKS)))
        self.header = SegmentHeader.create(memory, NUM_BLOCKS, LAYOUT.block_bytes, LAYOUT.fingerprint, "model")
        self.bytes = memoryview(bytearray(b"same" * (LAYOUT.block_bytes * NUM_BLOCKS // 4)))
        self.checksums = BlockChecksums(self.header, self.bytes, LAYOUT)

    def write(self, *block_ids: int, epoch: int) -> None:
        self.header.reserve([BlockId(block_id) for block_id in block_ids], epoch)
        self.checksums.record([BlockId(block_id) for block_id in block_ids], epoch)

    def find(self, *reads: tuple[int, int]) -> list[Damage]:
        return self.checksums.find_damage(BlockRead(BlockId(block_id), epoch) for block_id, epoch in reads)


def test_each_byte_of_a_block_counts_and_none_of_another() -> None:
    blocks = Blocks()
    blocks.write(1, 3, epoch=7)
    assert blocks.find((1, 7), (3, 7), (1, 7)) == []
    own = {at for begin, size in LAYOUT.block_spans(BlockId(3), NUM_BLOCKS) for at in range(begin, begin + size)}
    assert len(own) == LAYOUT.block_bytes
    for at in range(len(blocks.bytes)):
        blocks.bytes[at] ^= 0x10
        assert [damage.read.block_id for damage in blocks.find((3, 7))] == ([3] if at in own else [])
        blocks.bytes[at] ^= 0x10


@pytest.mark.parametrize(
    ("read_epoch", "text"),
    [(7, "KV block 2 was written under epoch 7 and is reserved under epoch 9 now"), (9, None)],
)
def test_a_record_holds_for_one_reservation(read_epoch: int, text: str | None) -> None:
    blocks = Blocks()
    blocks.write(2, epoch=7)
    blocks.write(2, epoch=9)
    assert [str(damage) for damage in blocks.find((2, read_epoch))] == ([] if text is None else [text])


def test_what_was_never_recorded_is_not_trusted() -> None:
    blocks = Blocks()
    assert [str(damage) for damage in blocks.find((0, 1))] == [
        "KV block 0 was written under epoch 1 and is reserved under epoch 0 now"
    ]
    blocks.header.reserve([BlockId(0)], 1)
    assert [str(damage) for damage in blocks.find((0, 1))] == [
        "KV block 0 was written under epoch 1, its checksum under epoch 0"
    ]


def test_a_copy_is_compared_with_what_its_source_was() -> None:
    blocks = Blocks()
    blocks.write(1, epoch=5)
    blocks.header.reserve([BlockId(4)], 6)
    blocks.checksums.copy(BlockId(1), BlockId(4))
    assert blocks.find((4, 6)) == [], "both hold the same bytes"

    blocks.bytes[LAYOUT.block_spans(BlockId(4), NUM_BLOCKS)[1][0]] ^= 1
    assert [str(damage) for damage in blocks.find((4, 6))] == [
        "KV block 4 does not hold what was written there under epoch 6"
    ]
    blocks.header.reserve([BlockId(1)], 8)
    blocks.checksums.copy(BlockId(1), BlockId(4))
    assert blocks.find((4, 6)), "its source has no record any more"
