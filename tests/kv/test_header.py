import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import EngineError
from diptych.core.ids import BlockId, WorkerId
from diptych.kv.header import SegmentHeader, header_bytes

NUM_BLOCKS, EXTENT_BLOCKS = 150, 64


def fresh() -> tuple[bytearray, SegmentHeader]:
    memory = bytearray(b"\xee" * header_bytes(NUM_BLOCKS, EXTENT_BLOCKS))
    header = SegmentHeader.create(
        memoryview(memory), NUM_BLOCKS, 737_280, "0123456789abcdef", "smollm2", extent_blocks=EXTENT_BLOCKS
    )
    return memory, header


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_headers_are_whole_pages_with_room_for_every_block(num_blocks: int, extent_blocks: int) -> None:
    num_bytes = header_bytes(num_blocks, extent_blocks)
    needed_bytes = 4096 + 64 * -(-num_blocks // extent_blocks) + (8 + 128 + 16) * num_blocks
    assert num_bytes % 4096 == 0
    assert needed_bytes <= num_bytes < needed_bytes + 4096 + 64


@pytest.mark.parametrize(("num_blocks", "extent_blocks"), [(0, 64), (10, 0), (-1, 1)])
def test_segments_without_blocks_are_refused(num_blocks: int, extent_blocks: int) -> None:
    with pytest.raises(EngineError, match="at least 1"):
        header_bytes(num_blocks, extent_blocks)


def test_create_wipes_what_was_there() -> None:
    _, header = fresh()
    every_block = [BlockId(block_id) for block_id in range(NUM_BLOCKS)]
    assert not header.epochs_of(every_block).any()
    assert header.committed(every_block) == [None] * NUM_BLOCKS
    assert [header.extent_owner(extent) for extent in range(3)] == [None] * 3


def test_open_finds_what_create_wrote() -> None:
    memory, created = fresh()
    opened = SegmentHeader.open(memoryview(memory))
    assert opened.shape == created.shape
    assert (opened.num_blocks, opened.shape.block_bytes, opened.shape.num_extents) == (NUM_BLOCKS, 737_280, 3)
    created.reserve([BlockId(9)], 4)
    assert opened.epochs_of([BlockId(8), BlockId(9)]).tolist() == [0, 4]
    opened.require("0123456789abcdef", "smollm2")


def test_an_engine_of_another_layout_or_model_is_refused() -> None:
    _, header = fresh()
    with pytest.raises(EngineError, match="KV layout 0123456789abcdef, this engine fedc"):
        header.require("fedc", "smollm2")
    with pytest.raises(EngineError, match="another model than qwen"):
        header.require("0123456789abcdef", "qwen")


def test_what_is_no_header_is_refused() -> None:
    memory, _ = fresh()
    with pytest.raises(EngineError, match="no Diptych segment"):
        SegmentHeader.open(memoryview(bytearray(8192)))
    with pytest.raises(EngineError, match="got 100"):
        SegmentHeader.open(memoryview(memory)[:100])
    with pytest.raises(EngineError, match="says 150 blocks"):
        SegmentHeader.open(memoryview(memory)[: len(memory) - 1])
    with pytest.raises(EngineError, match="writable"):
        SegmentHeader.open(memoryview(bytes(memory)))
    memory[8] += 1
    with pytest.raises(EngineError, match="format 3, this Diptych reads 2"):
        SegmentHeader.open(memoryview(memory))


def test_create_refuses_memory_that_cannot_hold_it() -> None:
    num_bytes = header_bytes(NUM_BLOCKS)
    for buffer in (memoryview(bytearray(num_bytes - 1)), memoryview(bytes(num_bytes))):
        with pytest.raises(EngineError, match="writable bytes"):
            SegmentHeader.create(buffer, NUM_BLOCKS, 1, "layout", "model")
    with pytest.raises(EngineError, match="fingerprint is longer"):
        SegmentHeader.create(memoryview(bytearray(num_bytes)), NUM_BLOCKS, 1, "x" * 33, "model")


def test_extents_cover_every_block_once() -> None:
    _, header = fresh()
    for extent, owner in enumerate(["decode-0", "decode-1", "decode-0"]):
        assert header.lease_extent(extent, WorkerId(owner), expected_epoch=0) == 1
    assert header.owned_blocks(WorkerId("decode-0")) == [*range(64), *range(128, 150)]
    assert header.owned_blocks(WorkerId("decode-1")) == list(range(64, 128))
    assert header.owned_blocks(WorkerId("decode-2")) == []
    assert header.extent_owner(1) == "decode-1"


def test_a_lease_moves_on_only_from_the_epoch_that_was_read() -> None:
    _, header = fresh()
    assert header.lease_extent(0, WorkerId("decode-0"), 0) == 1
    with pytest.raises(EngineError, match="epoch 1, not 0"):
        header.lease_extent(0, WorkerId("decode-1"), 0)
    assert header.extent_owner(0) == "decode-0"
    assert header.lease_extent(0, WorkerId("decode-1"), header.extent_epoch(0)) == 2
    assert header.extent_owner(0) == "decode-1"
    assert header.lease_extent(0, None, 2) == 3
    assert header.extent_owner(0) is None
    assert header.lease_extent(0, WorkerId("d" * 32), 3) == 4
    assert header.extent_owner(0) == "d" * 32


def test_leases_that_make_no_sense_are_refused() -> None:
    memory, header = fresh()
    before = bytes(memory)
    for extent in (-1, 3):
        with pytest.raises(EngineError, match="there is no extent"):
            header.lease_extent(extent, WorkerId("decode-0"), 0)
        with pytest.raises(EngineError, match="there is no extent"):
            header.extent_owner(extent)
    for owner in ("", "d" * 49, "\0", "ä" * 25):
        with pytest.raises(EngineError, match="1 to 48 bytes"):
            header.lease_extent(0, WorkerId(owner), 0)
    assert bytes(memory) == before


def test_a_half_written_lease_has_no_owner() -> None:
    memory, header = fresh()
    before = bytes(memory)
    header.lease_extent(1, WorkerId("decode-0"), 0)
    after = bytes(memory)
    changed = [at for at in range(len(memory)) if before[at] != after[at]]
    for cut in range(changed[0], changed[-1] + 1):
        memory[:] = before
        memory[changed[0] : cut] = after[changed[0] : cut]
        assert header.extent_owner(1) is None
    memory[:] = after
    assert header.extent_owner(1) == "decode-0"


def test_reserving_touches_the_named_blocks_alone() -> None:
    _, header = fresh()
    header.reserve([BlockId(149), BlockId(0)], 2**64 - 1)
    header.reserve([], 5)
    assert np.flatnonzero(header.block_epochs).tolist() == [0, 149]
    assert header.epochs_of([BlockId(149)]).tolist() == [2**64 - 1]


@pytest.mark.parametrize("block_id", [-1, NUM_BLOCKS])
def test_blocks_outside_the_segment_are_refused(block_id: int) -> None:
    _, header = fresh()
    with pytest.raises(EngineError, match="not all among"):
        header.reserve([BlockId(0), BlockId(block_id)], 1)
    assert not header.block_epochs.any()
    with pytest.raises(EngineError, match="not all among"):
        header.epochs_of([BlockId(block_id)])


def test_epoch_0_means_never_reserved() -> None:
    _, header = fresh()
    with pytest.raises(AssertionError, match="never reserved"):
        header.reserve([BlockId(0)], 0)


def test_the_live_epochs_cannot_be_written() -> None:
    _, header = fresh()
    with pytest.raises(ValueError, match="read-only"):
        header.block_epochs[0] = 1


def test_a_closed_header_lets_its_memory_be_unmapped(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(header_bytes(NUM_BLOCKS)))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
        view = memoryview(mapping)
        header = SegmentHeader.create(view, NUM_BLOCKS, 1, "layout", "model")
        header.close()
        view.release()
        mapping.close()
