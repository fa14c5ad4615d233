"""What a dead worker has left is found by content or by whose it was, and by nothing else."""

from diptych.core.ids import BlockHash, BlockId, RequestId, WorkerId
from diptych.kv.header import BlockCommit, SegmentHeader, header_bytes, parent_tag, request_key
from diptych.kv.orphans import Orphans
from diptych.kv.prefix_cache import HeldBlock

KEY = request_key(RequestId("r"), 1.0, 0)
OTHER_KEY = request_key(RequestId("r"), 2.0, 0)


def name(number: int) -> BlockHash:
    return BlockHash(bytes([number]) * 16)


def record(
    block_id: int, index: int, num_tokens: int, block_hash: BlockHash | None = None, parent: BlockHash | None = None
) -> BlockCommit:
    tag = None if parent is None else parent_tag(parent)
    return BlockCommit(BlockId(block_id), block_hash, KEY, index, num_tokens, epoch=1, parent_tag=tag)


def test_full_blocks_are_found_by_content_and_others_by_their_sequence() -> None:
    full, part = record(0, 0, 32, name(1)), record(1, 1, 5)
    orphans = Orphans([full, part])
    assert orphans.find(name(1), OTHER_KEY, 7) == full
    assert orphans.find(None, KEY, 1) == part
    assert orphans.find(name(2), KEY, 1) == part
    assert orphans.find(None, OTHER_KEY, 1) is None
    assert orphans.find(name(2), KEY, 2) is None


def test_of_several_records_of_a_place_the_fullest_counts() -> None:
    for records in ([record(0, 1, 5), record(1, 1, 20)], [record(1, 1, 20), record(0, 1, 5)]):
        found = Orphans(records).find(None, KEY, 1)
        assert found is not None
        assert found.num_tokens == 20


def test_what_was_cached_comes_with_the_deepest_first() -> None:
    orphans = Orphans(
        [
            record(3, 0, 32, name(1)),
            record(1, 2, 32, name(3), name(2)),
            record(2, 1, 32, name(2), name(1)),
            record(4, 3, 9),
        ]
    )
    assert orphans.cached() == [
        HeldBlock(name(3), BlockId(1), name(2)),
        HeldBlock(name(2), BlockId(2), name(1)),
        HeldBlock(name(1), BlockId(3), None),
    ]


def test_what_has_lost_a_block_before_it_is_not_cached() -> None:
    orphans = Orphans(
        [
            record(0, 0, 32, name(1)),
            record(1, 1, 32, name(2), name(9)),  # of another prompt, whose first block is gone
            record(2, 2, 32, name(3), name(2)),
            record(3, 2, 32, name(4), name(1)),  # not at the place behind that one
        ]
    )
    assert orphans.cached() == [HeldBlock(name(1), BlockId(0), None)]


def test_only_the_dead_workers_own_blocks_are_read() -> None:
    memory = memoryview(bytearray(header_bytes(4, 2)))
    header = SegmentHeader.create(memory, 4, 4096, "layout", "model", extent_blocks=2)
    for extent, worker in enumerate(("decode-0", "decode-1")):
        header.lease_extent(extent, WorkerId(worker), 0)
    header.reserve([BlockId(0), BlockId(2)], 1)
    mine, others = record(0, 0, 32, name(1)), record(2, 0, 32, name(2))
    header.commit([mine, others])
    orphans = Orphans.of(header, WorkerId("decode-0"))
    assert orphans.cached() == [HeldBlock(name(1), BlockId(0), None)]
    header.reserve([BlockId(0)], 2)
    assert Orphans.of(header, WorkerId("decode-0")).cached() == []
