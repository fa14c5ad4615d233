"""Commit records survive a writer that dies at any byte, and void when their block is reserved anew."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.errors import EngineError
from diptych.core.ids import BlockHash, BlockId, RequestId
from diptych.kv.commit_slots import BLOCK_SLOTS_BYTES
from diptych.kv.header import BlockCommit, SegmentHeader, header_bytes, request_key

NUM_BLOCKS = 70
BLOCK = BlockId(3)
KEY = request_key(RequestId("r1"), 0.0, 0)


def fresh() -> tuple[bytearray, SegmentHeader]:
    memory = bytearray(header_bytes(NUM_BLOCKS))
    return memory, SegmentHeader.create(memoryview(memory), NUM_BLOCKS, 4096, "layout", "model")


def record(num_tokens: int, block_id: int = BLOCK, epoch: int = 1, block_hash: bytes | None = None) -> BlockCommit:
    name = None if block_hash is None else BlockHash(block_hash)
    return BlockCommit(BlockId(block_id), name, KEY, 5, num_tokens, epoch, writer=2)


def test_what_was_committed_can_be_read() -> None:
    _, header = fresh()
    blocks = [BlockId(block_id) for block_id in (0, 7, NUM_BLOCKS - 1)]
    header.reserve(blocks, 2**63)
    commits = [
        BlockCommit(blocks[0], BlockHash(bytes(range(16))), KEY, 2**32 - 1, 2**16 - 1, 2**63, 2**16 - 1),
        BlockCommit(blocks[1], None, request_key(RequestId("r2"), 0.0, 4), 0, 1, 2**63, 0),
        BlockCommit(blocks[2], BlockHash(b"\xff" * 15 + b"\0"), KEY, 1, 32, 2**63, 9, b"\xff" * 5 + b"\0"),
    ]
    header.commit(commits)
    assert header.committed(blocks) == commits
    assert header.committed([BlockId(1), blocks[1]]) == [None, commits[1]]
    assert header.committed([]) == []


def test_the_newest_commit_holds() -> None:
    _, header = fresh()
    header.reserve([BLOCK], 1)
    for num_tokens in range(1, 8):
        header.commit([record(num_tokens)])
        assert header.committed([BLOCK]) == [record(num_tokens)]


def test_an_empty_step_commits_nothing() -> None:
    memory, header = fresh()
    before = bytes(memory)
    header.commit([])
    assert bytes(memory) == before


def test_reserving_anew_voids_both_slots() -> None:
    _, header = fresh()
    header.reserve([BLOCK], 1)
    header.commit([record(1)])
    header.commit([record(2)])
    header.reserve([BLOCK], 2)
    assert header.committed([BLOCK]) == [None]
    header.commit([record(1, epoch=2)])
    assert header.committed([BLOCK]) == [record(1, epoch=2)]


def test_a_writer_whose_block_was_taken_commits_nothing_at_all() -> None:
    memory, header = fresh()
    header.reserve([BlockId(1), BlockId(2)], 5)
    header.reserve([BlockId(2)], 6)
    before = bytes(memory)
    with pytest.raises(EngineError, match="block 2 is reserved under epoch 6, not 5"):
        header.commit([record(1, block_id=1, epoch=5), record(1, block_id=2, epoch=5)])
    assert bytes(memory) == before


def test_a_commit_that_makes_no_sense_is_refused_before_it_writes() -> None:
    memory, header = fresh()
    header.reserve([BLOCK], 1)
    before = bytes(memory)
    with pytest.raises(AssertionError, match="listed twice"):
        header.commit([record(1), record(2)])
    with pytest.raises(AssertionError, match="16 bytes"):
        header.commit([record(1, block_hash=b"short")])
    with pytest.raises(EngineError, match="not all among"):
        header.commit([record(1, block_id=NUM_BLOCKS)])
    with pytest.raises(EngineError, match="not all among"):
        header.committed([BlockId(-1)])
    assert bytes(memory) == before


def slot_bytes(memory: bytearray) -> slice:
    """Return where the slots of `BLOCK` are: the slots are the last part of the header, padded to a page."""
    _, header = fresh()
    slots_at = header.block_epochs.nbytes + 4096 + 2 * 64
    slots_at = -(-slots_at // 64) * 64
    assert slots_at + NUM_BLOCKS * BLOCK_SLOTS_BYTES <= len(memory)
    return slice(slots_at + BLOCK * BLOCK_SLOTS_BYTES, slots_at + (BLOCK + 1) * BLOCK_SLOTS_BYTES)


@pytest.mark.parametrize("num_commits", range(4))
def test_a_writer_killed_at_any_byte_leaves_the_old_record_or_the_new(num_commits: int) -> None:
    memory, header = fresh()
    header.reserve([BLOCK], 1)
    for num_tokens in range(1, num_commits + 1):
        header.commit([record(num_tokens)])
    old_record = header.committed([BLOCK])
    before = bytes(memory)
    header.commit([record(32, block_hash=b"h" * 16)])
    after = bytes(memory)

    changed = [at for at in range(len(memory)) if before[at] != after[at]]
    span = slot_bytes(memory)
    assert span.start <= min(changed) <= max(changed) < span.stop, "a commit writes to nothing but the block's slots"
    outcomes = []
    for cut in range(min(changed), max(changed) + 2):
        memory[:] = before
        memory[span.start : cut] = after[span.start : cut]
        (found,) = header.committed([BLOCK])
        assert found in (old_record[0], record(32, block_hash=b"h" * 16)), f"torn at byte {cut - span.start}"
        outcomes.append(found)
    assert outcomes[0] == old_record[0]
    assert outcomes[-1] == record(32, block_hash=b"h" * 16)

    # Whatever the dead writer left, the next one can commit.
    for cut in range(min(changed), max(changed) + 2):
        memory[:] = before
        memory[span.start : cut] = after[span.start : cut]
        header.commit([record(20)])
        assert header.committed([BLOCK]) == [record(20)]


@settings(deadline=None)
@given(st.sets(st.integers(0, BLOCK_SLOTS_BYTES - 1)))
def test_bytes_may_arrive_in_any_order(arrived: set[int]) -> None:
    memory, header = fresh()
    header.reserve([BLOCK], 1)
    header.commit([record(1)])
    header.commit([record(2)])
    before = bytes(memory)
    header.commit([record(3)])
    after = bytes(memory)
    memory[:] = before
    for at in arrived:
        position = slot_bytes(memory).start + at
        memory[position] = after[position]
    assert header.committed([BLOCK])[0] in (record(2), record(3))


def test_request_keys_name_the_attempt_and_tell_requests_of_the_same_id_apart() -> None:
    keys = {
        request_key(RequestId(name), arrived_s, attempt)
        for name in ("r1", "1 r1", "r11")
        for attempt in (0, 1, 11)
        for arrived_s in (1.0, 1.0000001)
    }
    assert len(keys) == 18
    assert all(len(key) == 16 for key in keys)
