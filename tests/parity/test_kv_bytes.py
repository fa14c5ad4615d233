"""What decode reads is, byte for byte, what prefill wrote; and the check that says so finds a single changed bit."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.live_server import LiveServer
from tests.parity.reference import BareEngine

from diptych.core.ids import BlockId
from diptych.engine.base import Row
from diptych.kv.header import SegmentHeader, header_bytes
from diptych.transfer.segment import Segment
from diptych.worker.memory import WorkerMemory

pytestmark = pytest.mark.slow


def test_a_server_that_compares_checksums_finds_none_that_differ(
    smol_server: LiveServer, prompts: list[list[int]]
) -> None:
    # That it would fail otherwise: tests/worker, in one process, with damaged blocks.
    shifted = [prompt[1:] for prompt in prompts if len(prompt) > 40]
    answers = smol_server.complete_all(shifted, max_tokens=2)
    assert {answer.num_cached_tokens for answer in answers} == {0}
    records = smol_server.records()[-len(shifted) :]
    assert {record["outcome"] for record in records} == {"length"}
    assert {record["prefill_worker"] for record in records} == {"prefill-0"}
    smol_server.wait_until_idle()


class OtherWorker:
    """The same segment, mapped a second time, as another process has it."""

    def __init__(self, bare_engine: BareEngine) -> None:
        self.segment = Segment(bare_engine.descriptor)
        self.layout = bare_engine.engine.layout
        self.num_blocks = bare_engine.num_blocks
        self.blocks = self.segment.view(0, self.segment.num_bytes)
        header_map = mmap.mmap(-1, header_bytes(self.num_blocks))
        header = SegmentHeader.create(
            memoryview(header_map), self.num_blocks, self.layout.block_bytes, self.layout.fingerprint, "key"
        )
        self.memory = WorkerMemory(header, self.blocks, self.layout)

    @contextmanager
    def bit_flipped(self, offset: int) -> Iterator[None]:
        self.blocks[offset] ^= 1
        yield
        self.blocks[offset] ^= 1


def test_a_single_bit_changes_the_checksum(bare_engine: BareEngine, prompts: list[list[int]]) -> None:
    prompt = prompts[3]
    table, unused = bare_engine.block_tables([len(prompt), 1])
    bare_engine.engine.step([Row(prompt, 0, table, 1)])
    other = OtherWorker(bare_engine)

    def checksum(begin: int = 0) -> int:
        return other.memory.checksum_written(table, begin, len(prompt))

    written, written_behind_first = checksum(), checksum(other.layout.block_size)
    for block_id in table:
        for begin, num_bytes in other.layout.block_spans(block_id, other.num_blocks):
            for offset in (begin, begin + num_bytes // 3, begin + num_bytes - 1):
                with other.bit_flipped(offset):
                    assert checksum() != written, f"byte {offset} of block {block_id} is not covered"
    assert checksum() == written
    with other.bit_flipped(_first_byte(other, unused[0])):
        assert checksum() == written, "a block of others is covered"
    with other.bit_flipped(_first_byte(other, table[0])):
        assert checksum(other.layout.block_size) == written_behind_first, "a cached block is covered"


def _first_byte(other: OtherWorker, block_id: BlockId) -> int:
    return other.layout.block_spans(block_id, other.num_blocks)[0][0]


def test_decode_reads_what_prefill_wrote(bare_engine: BareEngine, prompts: list[list[int]]) -> None:
    prompt = prompts[3]
    (table,) = bare_engine.block_tables([len(prompt) + 1])
    other = OtherWorker(bare_engine)

    def next_logits() -> list[float]:
        logits: list[float] = bare_engine.engine.step([Row([7], len(prompt), table, 1)])[0].tolist()
        return logits

    bare_engine.engine.step([Row(prompt, 0, table, 1)])
    undamaged = next_logits()
    assert next_logits() == undamaged
    begin, num_bytes = other.layout.block_spans(table[1], other.num_blocks)[0]
    kept = bytes(other.blocks[begin : begin + num_bytes])
    other.blocks[begin : begin + num_bytes] = bytes(num_bytes)
    assert next_logits() != undamaged, "decode does not read the block that was zeroed"
    other.blocks[begin : begin + num_bytes] = kept
    assert next_logits() == undamaged
